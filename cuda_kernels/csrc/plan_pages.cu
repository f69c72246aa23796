// The plan of `plan.cu` for a paged cache: intervals of a row's own positions -> spans of the cache's positions, one
// for every page that an interval touches. Attention over them is that of a cache in one piece: the page is in the
// shift. Once per decode step, for all layers; a block per row, of which the last to finish builds the schedule. One
// query per row.
#include <plan.cuh>

constexpr int MAX_PAGES_THREADS = 256;

// The inputs of a plan, and its outputs per row.
struct PagesParams {
    const int2* intervals;
    const int *counts, *table;
    int max_intervals, max_pages, max_spans, num_kv_heads;
    // Of a page: its tokens; and how far its beginning is from the beginning of the page before, in steps of a token.
    int page_size, page_step, num_pages;
    Span* spans;
    int *arrived, *errors;
    DEVICE int capacity() const { return max_pages * page_size; }
};

// So many intervals of a row as a block has threads, in shared memory.
struct SharedIntervals {
    int from[MAX_PAGES_THREADS], to[MAX_PAGES_THREADS];
    // Prefix sums: pages and tokens up to each interval, itself included.
    int pages[MAX_PAGES_THREADS], tokens[MAX_PAGES_THREADS];
    int warp_sums[MAX_PAGES_THREADS / 32];
    int end;  // list index behind the last span that there is room for

    // The interval that holds a page of the list of pages: the first whose sum is above it.
    DEVICE int interval_of(int page, int count) const {
        int low = 0, high = count - 1;
        while (low < high) {
            int middle = (low + high) / 2;
            if (pages[middle] > page)
                high = middle;
            else
                low = middle + 1;
        }
        return low;
    }
};

DEVICE int check_pages(const PagesParams& params, int row, int2 interval, int previous_end) {
    int wrong = 0;
    if (interval.x < 0 || interval.y > params.capacity() || interval.x >= interval.y) return WRONG_RANGE;
    if (interval.x < previous_end) wrong |= WRONG_ORDER;
    for (int page = interval.x / params.page_size; page <= (interval.y - 1) / params.page_size; page++)
        if ((u32)params.table[(i64)row * params.max_pages + page] >= (u32)params.num_pages) wrong |= WRONG_PAGE;
    return wrong;
}

// One span: what interval `number` of those in shared memory reads of its page `page`, both counted among those.
DEVICE Span span_of(const PagesParams& params, const SharedIntervals& shared, int row, int number, int page,
                    int tokens_before) {
    int from = shared.from[number], to = shared.to[number];
    int of_row = from / params.page_size + page - (number > 0 ? shared.pages[number - 1] : 0);
    int page_from = of_row * params.page_size, behind = min(to, page_from + params.page_size);
    int end = min(tokens_before + shared.tokens[number] - (to - behind), params.capacity());
    // Clamped: whatever the table says, nothing outside the cache is read.
    u32 at = min((u32)params.table[(i64)row * params.max_pages + of_row], (u32)params.num_pages - 1);
    return make_int2(end, (int)at * params.page_step + behind - page_from - end);
}

// The spans of one row, by a block.
DEVICE RowPlan plan_row(const PagesParams& params, SharedIntervals& shared, int row) {
    BlockScan scan{shared.warp_sums};
    const int2* intervals = params.intervals + (i64)row * params.max_intervals;
    Span* spans = params.spans + (i64)row * params.max_spans;
    int given = params.counts[row], count = min(max(given, 0), params.max_intervals);
    int num_tokens = 0, num_spans = 0;
    if (scan.index == 0) shared.end = 0;
    if (params.errors && scan.index == 0) params.errors[row] = given == count ? 0 : WRONG_COUNT;
    clear_counters(params.arrived, scan, row, params.num_kv_heads);
    scan.sync();
    for (int first = 0; first < count; first += scan.size) {
        int i = first + scan.index;
        int2 interval = i < count ? intervals[i] : make_int2(0, 0);
        int from = min(max(interval.x, 0), params.capacity()), to = min(max(interval.y, from), params.capacity());
        int pages = from < to ? (to - 1) / params.page_size - from / params.page_size + 1 : 0, all_pages, all_tokens;
        shared.from[scan.index] = from, shared.to[scan.index] = to;
        shared.pages[scan.index] = scan.inclusive_sum(pages, all_pages);
        shared.tokens[scan.index] = scan.inclusive_sum(to - from, all_tokens);
        scan.sync();
        for (int page = scan.index; page < all_pages && num_spans + page < params.max_spans; page += scan.size) {
            int number = shared.interval_of(page, min(count - first, scan.size));
            Span span = span_of(params, shared, row, number, page, num_tokens);
            spans[num_spans + page] = span;
            if (page == all_pages - 1 || num_spans + page == params.max_spans - 1) shared.end = span_end(span);
        }
        if (params.errors && i < count) {
            int wrong = check_pages(params, row, interval, i > 0 ? intervals[i - 1].y : interval.x);
            if (wrong) atomicOr(&params.errors[row], wrong);
        }
        num_tokens = min(num_tokens + all_tokens, params.capacity());
        num_spans = min(num_spans + all_pages, params.max_spans);
        scan.sync();
    }
    return {shared.end, num_spans};
}

// intervals: int32 [batch, max_intervals, 2], sorted, disjoint, half-open, of a row's own positions; counts: int32
// [batch], number of valid intervals; table: int32 [batch, max_pages], the cache's page that holds each page of a row.
// spans: [batch, max_spans], for `Cursor`; schedule_words, arrived, num_done, errors: as in `plan.cu`. Launched as one
// block per row.
extern "C" __global__ void __launch_bounds__(MAX_PAGES_THREADS)
    selfspan_plan_pages(const int2* intervals, const int* counts, const int* table, int batch, int max_intervals,
                        int max_pages, int page_size, int page_step, int num_pages, Span* spans, int max_spans,
                        int* schedule_words, int* arrived, int* num_done, int num_kv_heads, int num_blocks,
                        int* errors) {
    __shared__ SharedIntervals shared;
    launch_dependents();
    wait_for_prior_grids();
    PagesParams params = {intervals, counts,    table,     max_intervals, max_pages, max_spans, num_kv_heads,
                          page_size, page_step, num_pages, spans,         arrived,   errors};
    int* row_words = schedule_words + Schedule::visible_word(batch);
    RowPlan planned = plan_row(params, shared, blockIdx.x);
    if (threadIdx.x >= 32 || !hand_in(planned, blockIdx.x, batch, row_words, num_done)) return;
    build_schedule({batch, num_kv_heads, num_blocks}, *reinterpret_cast<Schedule*>(schedule_words),
                   [&](int row) { return load_gpu_scope(row_words + row); });
}
