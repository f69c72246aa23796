// The kernels as functions of a shared library: `library` in tests/kernel_on_cpu.py compiles this file.
#include <ptx.cuh>

#include <plan.cu>
#include <attention.cu>

extern "C" int num_line_words(int batch) {
    return Line::num_words(batch);
}

extern "C" void run_plan(const int2* intervals, const int* counts, int batch, int max_spans, int capacity, Span* spans,
                         int* line, int* arrived, int* num_done, int num_kv_heads, int num_blocks, int* errors,
                         int num_plan_blocks, int num_threads) {
    std::vector<unsigned> order(num_plan_blocks);
    for (int block = 0; block < num_plan_blocks; block++) order[block] = block;
    Machine::get().run(order, num_threads, 0, [=] {
        selfspan_plan(intervals, counts, batch, max_spans, capacity, spans, line, arrived, num_done, num_kv_heads,
                      num_blocks, errors);
    });
}

extern "C" void run_attention(u16* queries, const i64* query_strides, const u16* keys, const i64* key_strides,
                              const u16* values, const i64* value_strides, u16* out, const i64* out_strides, float* lse,
                              const Span* spans, const int* line, int batch, int max_spans, float scale, float* states,
                              int* arrived, int is_plan_done, const unsigned* block_order, int num_blocks,
                              i64 shared_bytes) {
    std::vector<unsigned> order(block_order, block_order + num_blocks);
    Machine::get().run(order, NUM_THREADS, shared_bytes, [=] {
        selfspan_attention(queries, query_strides[0], query_strides[1], keys, key_strides[0], key_strides[1],
                           key_strides[2], values, value_strides[0], value_strides[1], value_strides[2], out,
                           out_strides[0], out_strides[1], lse, spans, line, batch, max_spans, scale, states, arrived,
                           is_plan_done);
    });
}

// What the warps of a planned line work on: where it begins, how long it is, and its step; [num_warps, 3]. Returns
// whether whole units are dealt out.
extern "C" bool run_slices(const int* words, int* slices) {
    const Line& line = *reinterpret_cast<const Line*>(words);
    for (int number = 0; number < line.num_warps(); number++) {
        Slice slice = line.slice(number);
        int begin = line.unit_start(slice.from.row, slice.from.head) + slice.from.tile;
        slices[3 * number] = begin;
        slices[3 * number + 1] = slice.length;
        slices[3 * number + 2] = slice.step;
        for (int place = begin; place < begin + slice.length && !line.deal.warps; place++) {
            if (line.block_of(place) == number / NUM_WARPS) continue;
            fprintf(stderr, "place %d is not in block %d\n", place, number / NUM_WARPS);
            abort();
        }
    }
    return line.deal.warps > 0;
}
