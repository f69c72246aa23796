// Once per decode step, for all layers: intervals -> spans of the list of visible tokens, and the schedule. One block
// with a warp per row; or, where that would take longer, a block per row, of which the last to finish builds the
// schedule.
#include <plan.cuh>

// The inputs of a plan, and its outputs per row.
struct PlanParams {
    const int2* intervals;
    const int* counts;
    int max_spans, capacity, num_kv_heads;
    Span* spans;
    int *arrived, *errors;
    // With several queries only.
    const u32* masks;
    const int* positions;
};

constexpr u32 ALL_QUERIES = (1u << NUM_QUERIES) - 1;

// A row's first intervals, one per thread, and its count: loaded before the number of valid intervals is known.
struct FirstIntervals {
    int2 interval;
    u32 mask;
    int count, position;

    DEVICE FirstIntervals(const PlanParams& params, int row, int index)
        : interval(index < params.max_spans ? params.intervals[(i64)row * params.max_spans + index] : make_int2(0, 0)),
          mask(IS_MASKED && index < params.max_spans ? params.masks[(i64)row * params.max_spans + index] : 0),
          count(params.counts[row]),
          position(IS_MASKED ? params.positions[row] : 0) {}
};

DEVICE int check(int2 interval, u32 mask, int previous_end, int capacity) {
    int wrong = 0;
    if (interval.x < 0 || interval.y > capacity || interval.x >= interval.y) wrong |= WRONG_RANGE;
    if (interval.x < previous_end) wrong |= WRONG_ORDER;
    if (IS_MASKED && mask & ~ALL_QUERIES) wrong |= WRONG_MASK;
    return wrong;
}

DEVICE Span make_span(int end, int shift, u32 mask, int position) {
#if NUM_QUERIES > 1
    return make_int4(end, shift, (int)mask, position);
#else
    return make_int2(end, shift);
#endif
}

// The spans of one row, by a warp or a block.
template <class Scan>
DEVICE RowPlan plan_row(const PlanParams& params, Scan scan, int row, const FirstIntervals& first_intervals) {
    const int2* intervals = params.intervals + (i64)row * params.max_spans;
    Span* spans = params.spans + (i64)row * params.max_spans;
    const u32* masks = params.masks + (i64)row * params.max_spans;
    int count = min(max(first_intervals.count, 0), params.max_spans), before = 0;
    int position = min(max(first_intervals.position, 0), params.capacity - 1);
    if (params.errors) {
        int wrong = IS_MASKED && count > 0 && first_intervals.position != position ? WRONG_POSITION : 0;
        if (scan.index == 0) params.errors[row] = first_intervals.count == count ? wrong : wrong | WRONG_COUNT;
        scan.sync();
    }
    clear_counters(params.arrived, scan, row, params.num_kv_heads);
    int2 prefetched = first_intervals.interval;
    u32 prefetched_mask = first_intervals.mask;
    for (int first = 0; first < count; first += scan.size) {
        int i = first + scan.index, next = i + scan.size;
        int2 interval = i < count ? prefetched : make_int2(0, 0);
        u32 mask = i < count ? prefetched_mask : 0;
        if (next < count) prefetched = intervals[next];
        if (IS_MASKED && next < count) prefetched_mask = masks[next];
        // Clamped: whatever the table says, nothing outside the cache is read; nor what no query sees.
        int behind = params.capacity;
        if (IS_MASKED) {
            u32 queries = mask & ALL_QUERIES;
            behind = queries ? min(behind, position + 32 - __clz(queries)) : 0;
        }
        int from = min(max(interval.x, 0), behind), to = min(max(interval.y, from), behind);
        int total;
        int end = min(before + scan.inclusive_sum(to - from, total), params.capacity);
        if (i < count) {
            spans[i] = make_span(end, to - end, mask & ALL_QUERIES, position);
            int wrong =
                params.errors ? check(interval, mask, i > 0 ? intervals[i - 1].y : interval.x, params.capacity) : 0;
            if (wrong) atomicOr(&params.errors[row], wrong);
        }
        before = min(before + total, params.capacity);
    }
    return {before, count};
}

// All rows, a warp each, in a single block. `num_visible`: per row, in shared memory.
DEVICE void plan_by_warps(const PlanParams& params, int batch, int* row_words, int* num_visible) {
    WarpScan scan;
    int row = threadIdx.x / 32, num_warps = blockDim.x / 32;
    FirstIntervals first_intervals(params, min(row, batch - 1), scan.index);
    while (row < batch) {
        FirstIntervals current = first_intervals;
        int next = row + num_warps;
        if (next < batch) first_intervals = FirstIntervals(params, next, scan.index);
        RowPlan planned = plan_row(params, scan, row, current);
        if (scan.index == 0) {
            num_visible[row] = row_words[row] = planned.num_visible;
            row_words[batch + row] = planned.num_spans;
        }
        row = next;
    }
    __syncthreads();
}

// One row per block. Returns, to the first warp, whether this block is the last to finish: all others' results are
// visible then.
DEVICE bool plan_by_blocks(const PlanParams& params, int batch, int* row_words, int* warp_sums, int* num_done) {
    int row = blockIdx.x, thread = threadIdx.x;
    RowPlan planned = plan_row(params, BlockScan{warp_sums}, row, FirstIntervals(params, row, thread));
    return thread < 32 && hand_in(planned, row, batch, row_words, num_done);
}

// intervals: int32 [batch, max_spans, 2], sorted, disjoint, half-open; counts: int32 [batch], number of valid
// intervals. spans: [batch, max_spans], for `Cursor`; schedule_words: the schedule, for num_blocks blocks of the
// attention kernel; arrived: int32 [COLUMN_BLOCKS, num_row_heads], set to zero; num_done: int32 [1], zero before and
// after. errors: int32 [batch] or null; if given, intervals are checked against the capacity and each other. With
// several queries, masks: [batch, max_spans], bit q is set if query q sees the interval; positions: int32 [batch], the
// cache position of query 0, and query q is q tokens behind it: it sees its own token and none behind. Launched as one
// block, or as one block per row.
extern "C" __global__ void __launch_bounds__(MAX_PLAN_THREADS)
    selfspan_plan(const int2* intervals, const int* counts, int batch, int max_spans, int capacity, Span* spans,
                  int* schedule_words, int* arrived, int* num_done, int num_kv_heads, int num_blocks, int* errors,
                  const u32* masks, const int* positions) {
    __shared__ int warp_sums[MAX_PLAN_THREADS / 32], num_visible[MAX_BATCH];
    launch_dependents();
    wait_for_prior_grids();
    PlanParams params = {intervals, counts,  max_spans, capacity, num_kv_heads,
                         spans,     arrived, errors,    masks,    positions};
    int* row_words = schedule_words + Schedule::visible_word(batch);
    bool is_one_block = (int)gridDim.x < batch;
    if (is_one_block)
        plan_by_warps(params, batch, row_words, num_visible);
    else if (!plan_by_blocks(params, batch, row_words, warp_sums, num_done))
        return;
    if (threadIdx.x >= 32) return;
    build_schedule({batch, num_kv_heads, num_blocks}, *reinterpret_cast<Schedule*>(schedule_words),
                   [&](int row) { return is_one_block ? num_visible[row] : load_gpu_scope(row_words + row); });
}
