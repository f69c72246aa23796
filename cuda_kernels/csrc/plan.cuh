// What plans have in common: prefix sums, what a row hands in, and the schedule that is made of all rows.
#pragma once
#include <schedule.cuh>

// An upper bound; the launcher knows how many threads it uses.
constexpr int MAX_PLAN_THREADS = 1024;
constexpr int MAX_BATCH = 256;

// Errors in a row's intervals, reported in debug mode.
constexpr int WRONG_COUNT = 1, WRONG_RANGE = 2, WRONG_ORDER = 4, WRONG_MASK = 8, WRONG_POSITION = 16, WRONG_PAGE = 32;

// Prefix sums by a warp or a block: the sum of all values up to this thread's, and in `total` the sum of all.
struct WarpScan {
    int index = threadIdx.x % 32, size = 32;

    DEVICE int inclusive_sum(int value, int& total) {
        for (int step = 1; step < 32; step *= 2) {
            int before = __shfl_up_sync(FULL_WARP, value, step);
            if (index >= step) value += before;
        }
        total = __shfl_sync(FULL_WARP, value, 31);
        return value;
    }

    DEVICE void sync() { __syncwarp(); }
};

struct BlockScan {
    int* warp_sums;
    int index = threadIdx.x, size = blockDim.x;

    DEVICE int inclusive_sum(int value, int& total) {
        int of_warp, warp = index / 32;
        value = WarpScan().inclusive_sum(value, of_warp);
        if (index % 32 == 31) warp_sums[warp] = of_warp;
        __syncthreads();
        int before = 0;
        total = 0;
        for (int i = 0; i < size / 32; i++) {
            if (i < warp) before += warp_sums[i];
            total += warp_sums[i];
        }
        __syncthreads();
        return value + before;
    }

    DEVICE void sync() { __syncthreads(); }
};

// The part of a row's plan that the schedule uses.
struct RowPlan {
    int num_visible, num_spans;
};

// Hands in the plan of this block's row; by its first warp. Returns whether this block is the last to do so: all
// others' results are visible then.
DEVICE bool hand_in(RowPlan planned, int row, int batch, int* row_words, int* num_done) {
    bool is_last = false;
    if (threadIdx.x == 0) {
        row_words[row] = planned.num_visible;
        row_words[batch + row] = planned.num_spans;
        fence_device();
        is_last = atomicAdd(num_done, 1) == batch - 1;
        fence_device();
        if (is_last) *num_done = 0;
    }
    is_last = uniform(is_last);
    // The writes that the first thread has seen are now visible to the whole warp.
    __syncwarp();
    return is_last;
}

// Counters of a row's splits, set to zero; by all threads of a warp or a block.
template <class Scan>
DEVICE void clear_counters(int* arrived, Scan scan, int row, int num_kv_heads) {
    // Of every column block; which counter is which does not matter here.
    int num_counters = num_kv_heads * COLUMN_BLOCKS;
    for (int i = scan.index; i < num_counters; i += scan.size) arrived[row * num_counters + i] = 0;
}

// Builds the schedule; by one warp. `visible_of`: row -> number of visible tokens.
template <class VisibleOf>
DEVICE void build_schedule(Schedule schedule, Schedule& out, VisibleOf visible_of) {
    WarpScan scan;
    int longest = 0;
    int* start = reinterpret_cast<int*>(&out + 1);
    for (int first = 0; first < schedule.batch; first += 32) {
        int row = first + scan.index;
        int per_head = Schedule::work_length(row < schedule.batch ? visible_of(row) : 0);
        int length = schedule.num_kv_heads * per_head;
        int total, end = schedule.length + scan.inclusive_sum(length, total);
        longest = max(longest, per_head);
        if (row < schedule.batch) start[row] = end - length;
        schedule.length += total;
    }
    for (int step = 1; step < 32; step *= 2) longest = max(longest, __shfl_xor_sync(FULL_WARP, longest, step));
    if (scan.index > 0) return;
    start[schedule.batch] = schedule.length;
    schedule.partition(longest);
    out = schedule;
}
