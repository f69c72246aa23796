// The visible tokens of a row, seen as one gapless list: list index -> cache position.
#pragma once
#include <ptx.cuh>

// A number that is the same in all lanes of a warp, told to the compiler: it needs one register for all of them, and no
// code for lanes that go different ways.
DEVICE int uniform(int x) {
    return __shfl_sync(FULL_WARP, x, 0);
}

// One interval of a row: the list index behind its last token, and what to add to a list index to get a position.
typedef int2 Span;
DEVICE int span_end(const Span& span) {
    return span.x;
}
DEVICE int span_shift(const Span& span) {
    return span.y;
}

// Walks forward through a row's spans; every lane on its own.
struct Cursor {
    const Span* next;
    int end;
    int shift;

    // Set out from the span that holds `index`. The whole warp looks for the span of `least`, the least of its indices,
    // 32 probes at a time; then every lane finds its own among the 32 spans from there, or walks on from the last.
    DEVICE void start(const Span* spans, int count, int least, int index, int lane) {
        int low = 0, high = count;
        while (high - low > 32) {
            int step = (high - low + 31) / 32;
            int probe = min(low + (lane + 1) * step, high) - 1;
            u32 behind = __ballot_sync(FULL_WARP, span_end(spans[probe]) > least);
            low += (__ffs(behind) - 1) * step;
            high = min(low + step, high);
        }
        Span held = spans[min(low + lane, count - 1)];
        int before = 0;  // spans of the 32 that end at or before `index`, as far as they are known to
        for (int step = 16; step > 0; step /= 2)
            if (__shfl_sync(FULL_WARP, span_end(held), before + step - 1) <= index) before += step;
        end = __shfl_sync(FULL_WARP, span_end(held), before);
        shift = __shfl_sync(FULL_WARP, span_shift(held), before);
        next = spans + min(low + before, count - 1) + 1;
    }

    // The position of a list index that is not below the one before.
    DEVICE int position(int index) {
        while (index >= end) {
            Span span = *next++;
            end = span_end(span);
            shift = span_shift(span);
        }
        return index + shift;
    }
};
