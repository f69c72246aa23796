// The visible tokens of a row, seen as one gapless list: list index -> cache position.
#pragma once
#include <ptx.cuh>

constexpr u32 FULL_WARP = 0xffffffffu;

// One interval of a row: the list index behind its last token, and what to add to a list index to get a position.
typedef int2 Span;
DEVICE int span_end(const Span& span) {
    return span.x;
}
DEVICE int span_shift(const Span& span) {
    return span.y;
}

// Walks forward through a row's spans.
struct Cursor {
    const Span* next;
    int end;
    int shift;

    // Set out from the span that holds `index`. The whole warp looks for it together: 32 probes at a time.
    DEVICE void start(const Span* spans, int count, int index, int lane) {
        int low = 0, high = count;
        while (high - low > 1) {
            int step = (high - low + 31) / 32;
            int probe = min(low + (lane + 1) * step, high) - 1;
            u32 behind = __ballot_sync(FULL_WARP, span_end(spans[probe]) > index);
            low += (__ffs(behind) - 1) * step;
            high = min(low + step, high);
        }
        next = spans + low;
        read();
    }

    // The position of a list index that is not below the one before.
    DEVICE int position(int index) {
        while (index >= end) read();
        return index + shift;
    }

    DEVICE void read() {
        Span span = *next++;
        end = span_end(span);
        shift = span_shift(span);
    }
};
