// Once per decode step, for all layers: intervals -> spans of the gapless list, and who works on what. One block a row;
// the last one to be done lays out the line.
#include <schedule.cuh>

// At most; the launcher takes as many threads as a row can have spans, if there are fewer.
constexpr int MAX_PLAN_THREADS = 1024;

// What debug mode finds wrong with a row's intervals.
constexpr int WRONG_COUNT = 1, WRONG_RANGE = 2, WRONG_ORDER = 4;

// The sum of `value` over this thread and those before it in the block, and in `total` that of the whole block.
DEVICE int sum_up_to(int value, int* warp_sums, int& total) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        int before = __shfl_up_sync(FULL_WARP, value, step);
        if (lane >= step) value += before;
    }
    if (lane == 31) warp_sums[warp] = value;
    __syncthreads();
    int before = 0;
    total = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++) {
        if (i < warp) before += warp_sums[i];
        total += warp_sums[i];
    }
    __syncthreads();
    return value + before;
}

DEVICE int check(int2 interval, int previous_end, int capacity) {
    int wrong = 0;
    if (interval.x < 0 || interval.y > capacity || interval.x >= interval.y) wrong |= WRONG_RANGE;
    if (interval.x < previous_end) wrong |= WRONG_ORDER;
    return wrong;
}

// Rows behind one another; by one warp.
DEVICE void lay_out(Line& line, int lane) {
    int before = 0, longest = 0;
    for (int first = 0; first < line.batch; first += 32) {
        int row = first + lane;
        int visible = row < line.batch ? load_from_any_block(line.num_visible() + row) : 0;
        int unit = Line::unit_length(visible), length = line.num_kv_heads * unit;
        int end = length;
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(FULL_WARP, end, step);
            if (lane >= step) end += other;
        }
        longest = max(longest, unit);
        if (row < line.batch) line.start()[row] = before + end - length;
        before += __shfl_sync(FULL_WARP, end, 31);
    }
    for (int step = 1; step < 32; step *= 2) longest = max(longest, __shfl_xor_sync(FULL_WARP, longest, step));
    if (lane > 0) return;
    line.start()[line.batch] = line.length = before;
    line.divide(longest);
}

// Whether all other blocks are done, and have said what this thread's said before.
DEVICE bool is_last_block(int* num_done) {
    fence_device();
    if (atomicAdd(num_done, 1) != (int)gridDim.x - 1) return false;
    fence_device();
    *num_done = 0;
    return true;
}

// intervals: int32 [batch, max_spans, 2], sorted, disjoint, half-open; counts: int32 [batch], how many of them are
// meant. spans: [batch, max_spans] for `Cursor`; line_words: the line, for num_blocks blocks of the attention
// kernel; arrived: int32 [num_units], set to zero; num_done: int32 [1], zero before and after. errors: int32 [batch] or
// null; where given, intervals are checked against the capacity and each other.
extern "C" __global__ void __launch_bounds__(MAX_PLAN_THREADS)
    selfspan_plan(const int2* intervals, const int* counts, int max_spans, int capacity, Span* spans, int* line_words,
                  int* arrived, int* num_done, int num_kv_heads, int num_blocks, int* errors) {
    __shared__ int warp_sums[MAX_PLAN_THREADS / 32];
    let_next_start();
    wait_for_inputs();
    Line& line = *reinterpret_cast<Line*>(line_words);
    int row = blockIdx.x, batch = gridDim.x;
    intervals += (i64)row * max_spans;
    spans += (i64)row * max_spans;
    // On its way before it is known whether it counts.
    int2 ahead = (int)threadIdx.x < max_spans ? intervals[threadIdx.x] : make_int2(0, 0);
    int count = min(max(counts[row], 0), max_spans);
    if (errors && threadIdx.x == 0) errors[row] = counts[row] == count ? 0 : WRONG_COUNT;
    for (int head = threadIdx.x; head < num_kv_heads; head += blockDim.x) arrived[row * num_kv_heads + head] = 0;
    int before = 0;
    for (int first = 0; first < count; first += blockDim.x) {
        int i = first + threadIdx.x, next = i + blockDim.x;
        int2 interval = i < count ? ahead : make_int2(0, 0);
        if (next < count) ahead = intervals[next];
        // Whatever the table says, nothing outside of the cache is read.
        int from = min(max(interval.x, 0), capacity), to = min(max(interval.y, from), capacity);
        int total;
        int end = min(before + sum_up_to(to - from, warp_sums, total), capacity);
        if (i < count) {
            spans[i] = make_int2(end, to - end);
            int wrong = errors ? check(interval, i > 0 ? intervals[i - 1].y : interval.x, capacity) : 0;
            if (wrong) atomicOr(&errors[row], wrong);
        }
        before = min(before + total, capacity);
    }
    if (threadIdx.x == 0) {
        // The same from every block.
        line.batch = batch;
        line.num_kv_heads = num_kv_heads;
        line.num_blocks = num_blocks;
        line.num_visible()[row] = before;
        line.num_spans()[row] = count;
    }
    if (threadIdx.x >= 32) return;
    bool is_last = threadIdx.x == 0 && is_last_block(num_done);
    if (!__ballot_sync(FULL_WARP, is_last)) return;
    __syncwarp();
    lay_out(line, threadIdx.x);
}
