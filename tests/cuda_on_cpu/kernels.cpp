// The kernels as functions of a shared library: `library` in tests/kernel_on_cpu.py compiles this file.
#include <ptx.cuh>

#include <plan.cu>
#include <attention.cu>

extern "C" void run_plan(const int2* intervals, const int* counts, int batch, int max_spans, int capacity, Span* spans,
                         int2* rows, int* arrived, int units_per_row, int* errors) {
    std::vector<unsigned> order(batch);
    for (int row = 0; row < batch; row++) order[row] = row;
    Machine::get().run(order, PLAN_THREADS, 0, [=] {
        selfspan_plan(intervals, counts, max_spans, capacity, spans, rows, arrived, units_per_row, errors);
    });
}

extern "C" void run_attention(u16* queries, const i64* query_strides, const u16* keys, const i64* key_strides,
                              const u16* values, const i64* value_strides, u16* out, const i64* out_strides, float* lse,
                              const Span* spans, const int2* rows, int batch, int num_kv_heads, int max_spans, float scale, float* states, int* arrived,
                              const unsigned* block_order, int num_blocks, i64 shared_bytes) {
    std::vector<unsigned> order(block_order, block_order + num_blocks);
    Machine::get().run(order, NUM_THREADS, shared_bytes, [=] {
        selfspan_attention(queries, query_strides[0], query_strides[1], keys, key_strides[0], key_strides[1],
                           key_strides[2], values, value_strides[0], value_strides[1], value_strides[2], out,
                           out_strides[0], out_strides[1], lse, spans, rows, batch, num_kv_heads, max_spans, scale, states, arrived);
    });
}

// Where the slices of a line begin: `begins` [num_warps + 1]; and whether whole units are dealt out.
extern "C" bool run_slices(int* num_visible, int batch, int num_kv_heads, int num_warps, int* begins) {
    std::vector<int> start(batch + 1);
    int longest = 0;
    for (int row = 0; row < batch; row++) {
        start[row + 1] = start[row] + num_kv_heads * Line::unit_length(num_visible[row]);
        longest = max(longest, Line::unit_length(num_visible[row]));
    }
    Line line({start.data(), num_visible, nullptr}, batch, num_kv_heads, num_warps, longest);
    for (int slice = 0; slice <= num_warps; slice++) begins[slice] = line.slice_begin(slice);
    for (int place = 0; place < line.length && !line.deal.warps; place++) {
        int slice = line.block_of(place) * NUM_WARPS;
        if (place < begins[slice] || place >= begins[min(num_warps, slice + NUM_WARPS)]) {
            fprintf(stderr, "place %d is not in block %d\n", place, slice / NUM_WARPS);
            abort();
        }
    }
    return line.deal.warps;
}
