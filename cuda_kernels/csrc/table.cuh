// The visible tokens of a row as one gapless list: list index -> cache position.
#pragma once
#include <ptx.cuh>

// A value that is equal in all lanes of a warp, made known to the compiler: it needs one register for all of them, and
// no code for divergent lanes.
DEVICE int uniform(int x) {
    return __shfl_sync(FULL_WARP, x, 0);
}

// One interval of a row: the list index behind its last token, and what to add to a list index to get a cache position.
typedef int2 Span;
DEVICE int span_end(const Span& span) {
    return span.x;
}
DEVICE int span_shift(const Span& span) {
    return span.y;
}

// Walks forward through a row's spans; each lane for itself.
struct Cursor {
    const Span* next;
    int end;
    int shift;

    // Starts at the span that holds `index`. The warp together searches the span of `lowest`, the lowest index of its
    // lanes, with 32 probes at a time; then each lane finds its own among the 32 spans from there, or walks on from the
    // last.
    DEVICE void seek(const Span* spans, int count, int lowest, int index, int lane) {
        int low = 0, high = count;
        while (high - low > 32) {
            int step = (high - low + 31) / 32;
            int probe = min(low + (lane + 1) * step, high) - 1;
            u32 behind = __ballot_sync(FULL_WARP, span_end(spans[probe]) > lowest);
            low += (__ffs(behind) - 1) * step;
            high = min(low + step, high);
        }
        Span held = spans[min(low + lane, count - 1)];
        int before = 0;  // of the 32 spans, those known to end at or before `index`
        for (int step = 16; step > 0; step /= 2)
            if (__shfl_sync(FULL_WARP, span_end(held), before + step - 1) <= index) before += step;
        end = __shfl_sync(FULL_WARP, span_end(held), before);
        shift = __shfl_sync(FULL_WARP, span_shift(held), before);
        next = spans + min(low + before, count - 1) + 1;
    }

    // The cache position of a list index; indices must not decrease from call to call.
    DEVICE int position(int index) {
        while (index >= end) {
            Span span = *next++;
            end = span_end(span);
            shift = span_shift(span);
        }
        return index + shift;
    }
};
