// Once per decode step, for all layers: intervals -> spans of the gapless list, and who works on what. A warp per row,
// all in one block; or, where that would take longer, a block per row, and the last to be done lays out the line.
#include <schedule.cuh>

// At most; the launcher knows how many it takes.
constexpr int MAX_PLAN_THREADS = 1024;
constexpr int MAX_BATCH = 256;

// What debug mode finds wrong with a row's intervals.
constexpr int WRONG_COUNT = 1, WRONG_RANGE = 2, WRONG_ORDER = 4;

// The threads that work on one row. They add up a value each: over themselves and those before; in `total`, over all.
struct WarpTeam {
    int index = threadIdx.x % 32, size = 32;

    DEVICE int sum_up_to(int value, int& total) {
        for (int step = 1; step < 32; step *= 2) {
            int before = __shfl_up_sync(FULL_WARP, value, step);
            if (index >= step) value += before;
        }
        total = __shfl_sync(FULL_WARP, value, 31);
        return value;
    }

    DEVICE void sync() { __syncwarp(); }
};

struct BlockTeam {
    int* warp_sums;
    int index = threadIdx.x, size = blockDim.x;

    DEVICE int sum_up_to(int value, int& total) {
        int of_warp, warp = index / 32;
        value = WarpTeam().sum_up_to(value, of_warp);
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

// What a plan is made of, and where the rows' part of it goes.
struct Table {
    const int2* intervals;
    const int* counts;
    int max_spans, capacity, num_kv_heads;
    Span* spans;
    int *arrived, *errors;
};

// A row's first intervals, one per thread, and its count: on their way before it is known which of them matter.
struct Beginning {
    int2 interval;
    int count;

    DEVICE Beginning(const Table& table, int row, int index)
        : interval(index < table.max_spans ? table.intervals[(i64)row * table.max_spans + index] : make_int2(0, 0)),
          count(table.counts[row]) {}
};

DEVICE int check(int2 interval, int previous_end, int capacity) {
    int wrong = 0;
    if (interval.x < 0 || interval.y > capacity || interval.x >= interval.y) wrong |= WRONG_RANGE;
    if (interval.x < previous_end) wrong |= WRONG_ORDER;
    return wrong;
}

// What the line has to know of a row.
struct Row {
    int num_visible, num_spans;
};

// One row's spans, by a team.
template <class Team>
DEVICE Row plan_row(const Table& table, Team team, int row, const Beginning& beginning) {
    const int2* intervals = table.intervals + (i64)row * table.max_spans;
    Span* spans = table.spans + (i64)row * table.max_spans;
    int count = min(max(beginning.count, 0), table.max_spans), before = 0;
    if (table.errors) {
        if (team.index == 0) table.errors[row] = beginning.count == count ? 0 : WRONG_COUNT;
        team.sync();
    }
    for (int head = team.index; head < table.num_kv_heads; head += team.size)
        table.arrived[row * table.num_kv_heads + head] = 0;
    int2 ahead = beginning.interval;
    for (int first = 0; first < count; first += team.size) {
        int i = first + team.index, next = i + team.size;
        int2 interval = i < count ? ahead : make_int2(0, 0);
        if (next < count) ahead = intervals[next];
        // Whatever the table says, nothing outside of the cache is read.
        int from = min(max(interval.x, 0), table.capacity), to = min(max(interval.y, from), table.capacity);
        int total;
        int end = min(before + team.sum_up_to(to - from, total), table.capacity);
        if (i < count) {
            spans[i] = make_int2(end, to - end);
            int wrong = table.errors ? check(interval, i > 0 ? intervals[i - 1].y : interval.x, table.capacity) : 0;
            if (wrong) atomicOr(&table.errors[row], wrong);
        }
        before = min(before + total, table.capacity);
    }
    return {before, count};
}

// All rows, a warp each; by the only block. `num_visible`: of the rows, in shared memory.
DEVICE void plan_by_warps(const Table& table, int batch, int* row_words, int* num_visible) {
    WarpTeam team;
    int row = threadIdx.x / 32, num_warps = blockDim.x / 32;
    Beginning beginning(table, min(row, batch - 1), team.index);
    while (row < batch) {
        Beginning now = beginning;
        int next = row + num_warps;
        if (next < batch) beginning = Beginning(table, next, team.index);
        Row planned = plan_row(table, team, row, now);
        if (team.index == 0) {
            num_visible[row] = row_words[row] = planned.num_visible;
            row_words[batch + row] = planned.num_spans;
        }
        row = next;
    }
    __syncthreads();
}

// One row by each block. Whether all others are done, and have said what they found; told to the first warp.
DEVICE bool plan_by_blocks(const Table& table, int batch, int* row_words, int* warp_sums, int* num_done) {
    int row = blockIdx.x, thread = threadIdx.x;
    Row planned = plan_row(table, BlockTeam{warp_sums}, row, Beginning(table, row, thread));
    if (thread >= 32) return false;
    bool is_last = false;
    if (thread == 0) {
        row_words[row] = planned.num_visible;
        row_words[batch + row] = planned.num_spans;
        fence_device();
        is_last = atomicAdd(num_done, 1) == batch - 1;
        fence_device();
        if (is_last) *num_done = 0;
    }
    is_last = uniform(is_last);
    // What the first thread has seen written, all of them see.
    __syncwarp();
    return is_last;
}

// Rows behind one another; by one warp. `visible_of`: a row -> its visible tokens.
template <class VisibleOf>
DEVICE void lay_out(Line line, Line& out, VisibleOf visible_of) {
    WarpTeam team;
    int longest = 0;
    int* start = reinterpret_cast<int*>(&out + 1);
    for (int first = 0; first < line.batch; first += 32) {
        int row = first + team.index;
        int unit = Line::unit_length(row < line.batch ? visible_of(row) : 0), length = line.num_kv_heads * unit;
        int of_these, end = line.length + team.sum_up_to(length, of_these);
        longest = max(longest, unit);
        if (row < line.batch) start[row] = end - length;
        line.length += of_these;
    }
    for (int step = 1; step < 32; step *= 2) longest = max(longest, __shfl_xor_sync(FULL_WARP, longest, step));
    if (team.index > 0) return;
    start[line.batch] = line.length;
    line.divide(longest);
    out = line;
}

// intervals: int32 [batch, max_spans, 2], sorted, disjoint, half-open; counts: int32 [batch], how many of them are
// meant. spans: [batch, max_spans] for `Cursor`; line_words: the line, for num_blocks blocks of the attention
// kernel; arrived: int32 [num_units], set to zero; num_done: int32 [1], zero before and after. errors: int32 [batch] or
// null; where given, intervals are checked against the capacity and each other. Launched as one block, or as one per
// row.
extern "C" __global__ void __launch_bounds__(MAX_PLAN_THREADS)
    selfspan_plan(const int2* intervals, const int* counts, int batch, int max_spans, int capacity, Span* spans,
                  int* line_words, int* arrived, int* num_done, int num_kv_heads, int num_blocks, int* errors) {
    __shared__ int warp_sums[MAX_PLAN_THREADS / 32], num_visible[MAX_BATCH];
    let_next_start();
    wait_for_inputs();
    Table table = {intervals, counts, max_spans, capacity, num_kv_heads, spans, arrived, errors};
    int* row_words = line_words + Line::visible_word(batch);
    bool is_one_block = (int)gridDim.x < batch;
    if (is_one_block)
        plan_by_warps(table, batch, row_words, num_visible);
    else if (!plan_by_blocks(table, batch, row_words, warp_sums, num_done))
        return;
    if (threadIdx.x >= 32) return;
    lay_out({batch, num_kv_heads, num_blocks}, *reinterpret_cast<Line*>(line_words),
            [&](int row) { return is_one_block ? num_visible[row] : load_from_any_block(row_words + row); });
}
