// Once per decode step, for all layers: intervals -> spans of the gapless list, and how long that list is. One block a
// row.
#include <table.cuh>

constexpr int PLAN_THREADS = 256;

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
    for (int i = 0; i < PLAN_THREADS / 32; i++) {
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

// intervals: int32 [batch, max_spans, 2], sorted, disjoint, half-open; counts: int32 [batch], how many of them are
// meant. spans: [batch, max_spans] for `Cursor`; rows: int32 [batch, 2], how many tokens each row sees, and how many
// spans that takes; arrived: int32 [num_units], set to zero. errors: int32 [batch] or null; where given, intervals are checked
// against the capacity and each other.
extern "C" __global__ void __launch_bounds__(PLAN_THREADS)
    selfspan_plan(const int2* intervals, const int* counts, int max_spans, int capacity, Span* spans, int2* rows,
                  int* arrived, int units_per_row, int* errors) {
    __shared__ int warp_sums[PLAN_THREADS / 32];
    int row = blockIdx.x;
    int count = min(max(counts[row], 0), max_spans);
    intervals += (i64)row * max_spans;
    spans += (i64)row * max_spans;
    if (errors && threadIdx.x == 0) errors[row] = counts[row] == count ? 0 : WRONG_COUNT;
    for (int unit = threadIdx.x; unit < units_per_row; unit += PLAN_THREADS) arrived[row * units_per_row + unit] = 0;
    int before = 0;
    for (int first = 0; first < count; first += PLAN_THREADS) {
        int i = first + threadIdx.x;
        int2 interval = i < count ? intervals[i] : make_int2(0, 0);
        // Whatever the table says, nothing outside of the cache is read.
        int from = min(max(interval.x, 0), capacity), to = min(max(interval.y, from), capacity);
        int total;
        int end = before + sum_up_to(to - from, warp_sums, total);
        if (i < count) {
            spans[i] = make_int2(end, to - end);
            int wrong = errors ? check(interval, i > 0 ? intervals[i - 1].y : interval.x, capacity) : 0;
            if (wrong) atomicOr(&errors[row], wrong);
        }
        before += total;
    }
    if (threadIdx.x == 0) rows[row] = make_int2(min(before, capacity), count);
}
