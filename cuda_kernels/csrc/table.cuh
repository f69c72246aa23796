// The visible tokens of a row as one gapless list: list index -> cache position.
#pragma once
#include <columns.cuh>

// A value that is equal in all lanes of a warp, made known to the compiler: it needs one register for all of them, and
// no code for divergent lanes.
DEVICE int uniform(int x) {
    return __shfl_sync(FULL_WARP, x, 0);
}

// One interval of a row: the list index behind its last token, and what to add to a list index to get a cache position.
// With several queries, also which of them see it, as bits, and the cache position of the row's first query.
#if NUM_QUERIES > 1
typedef int4 Span;
#else
typedef int2 Span;
#endif
DEVICE int span_end(const Span& span) {
    return span.x;
}
DEVICE int span_shift(const Span& span) {
    return span.y;
}
DEVICE u32 span_mask(const int4& span) {
    return span.z;
}
DEVICE u32 span_mask(const int2&) {
    return 1;
}
DEVICE int span_first_position(const int4& span) {
    return span.w;
}
DEVICE int span_first_position(const int2&) {
    return 0;
}

// Walks forward through a row's spans; each lane for itself.
struct Cursor {
    const Span* next;
    int end;
    int shift;
    // With several queries only.
    u32 mask;
    int first_position;

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
        if (IS_MASKED) {
            mask = __shfl_sync(FULL_WARP, span_mask(held), before);
            first_position = uniform(span_first_position(held));
        }
        next = spans + min(low + before, count - 1) + 1;
    }

    // The cache position of a list index; indices must not decrease from call to call.
    DEVICE int position(int index) {
        if (IS_WIDE) take(next[-1]);
        while (index >= end) {
            Span span = *next++;
            end = span_end(span);
            shift = span_shift(span);
            if (IS_MASKED) mask = span_mask(span);
        }
        return index + shift;
    }

    // Registers are scarce with many columns: there the span is read again for every tile, from the first-level cache.
    DEVICE void take(const Span& span) {
        end = span_end(span);
        shift = span_shift(span);
        mask = span_mask(span);
        first_position = span_first_position(span);
    }

    // Which queries see the token at a cache position, which `position` has just returned: bits. The plan leaves no
    // token behind the last query.
    DEVICE u32 seen_by(int position) const { return mask & FULL_WARP << max(0, position - first_position); }
};
