// The kernels as functions of a shared library: `library` in tests/kernel_on_cpu.py compiles this file.
#include <ptx.cuh>

#include <plan.cu>
#if NUM_QUERIES == 1
#include <plan_pages.cu>
#endif
#include <attention.cu>

extern "C" int num_schedule_words(int batch) {
    return Schedule::num_words(batch);
}

extern "C" void run_plan(const int2* intervals, const int* counts, int batch, int max_spans, int capacity, Span* spans,
                         int* schedule, int* arrived, int* num_done, int num_kv_heads, int num_blocks, int* errors,
                         const u32* masks, const int* positions, int num_plan_blocks, int num_threads) {
    std::vector<unsigned> order(num_plan_blocks);
    for (int block = 0; block < num_plan_blocks; block++) order[block] = block;
    Machine::get().run(order, num_threads, 0, [=] {
        selfspan_plan(intervals, counts, batch, max_spans, capacity, spans, schedule, arrived, num_done, num_kv_heads,
                      num_blocks, errors, masks, positions);
    });
}

#if NUM_QUERIES == 1
extern "C" void run_plan_pages(const int2* intervals, const int* counts, const int* table, int batch, int max_intervals,
                               int max_pages, int page_size, int page_step, int num_pages, Span* spans, int max_spans,
                               int* schedule, int* arrived, int* num_done, int num_kv_heads, int num_blocks,
                               int* errors, int num_threads) {
    std::vector<unsigned> order(batch);
    for (int block = 0; block < batch; block++) order[block] = block;
    Machine::get().run(order, num_threads, 0, [=] {
        selfspan_plan_pages(intervals, counts, table, batch, max_intervals, max_pages, page_size, page_step, num_pages,
                            spans, max_spans, schedule, arrived, num_done, num_kv_heads, num_blocks, errors);
    });
}
#endif

extern "C" void run_attention(u16* queries, const i64* query_strides, const u16* keys, const i64* key_strides,
                              const u16* values, const i64* value_strides, u16* out, const i64* out_strides, float* lse,
                              const Span* spans, const int* schedule, int batch, int max_spans, float scale,
                              float* partials, int* arrived, int is_plan_done, const unsigned* block_order,
                              int num_blocks, i64 shared_bytes) {
    std::vector<unsigned> order(block_order, block_order + num_blocks);
    Machine::get().run(order, NUM_THREADS, shared_bytes, [=] {
        selfspan_attention(queries, query_strides[0], query_strides[1], keys, key_strides[0], key_strides[1],
                           key_strides[2], values, value_strides[0], value_strides[1], value_strides[2], out,
                           out_strides[0], out_strides[1], lse, spans, schedule, batch, max_spans, scale, partials,
                           arrived, is_plan_done, query_strides[2], out_strides[2]);
    });
}

// The work ranges of a schedule's warps: where they begin, their length, and their step; [num_warps, 3]. Returns
// whether whole row-heads are assigned.
extern "C" bool run_ranges(const int* words, int* ranges) {
    const Schedule& schedule = *reinterpret_cast<const Schedule*>(words);
    for (int number = 0; number < schedule.num_warps(); number++) {
        WorkRange range = schedule.range_of_warp(number);
        int begin = schedule.row_head_start(range.from.row, range.from.head) + range.from.tile;
        ranges[3 * number] = begin;
        ranges[3 * number + 1] = range.length;
        ranges[3 * number + 2] = range.step;
        for (int work_index = begin; work_index < begin + range.length && !schedule.whole.warps_per_row_head;
             work_index++) {
            if (schedule.block_of(work_index) == number / NUM_WARPS) continue;
            fprintf(stderr, "work_index %d is not in block %d\n", work_index, number / NUM_WARPS);
            abort();
        }
    }
    return schedule.whole.warps_per_row_head > 0;
}
