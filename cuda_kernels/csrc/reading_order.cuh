// Which segments a header is likely to name next: those that were not read yet, in the order of the text, where a
// step's result stands in place of the first segment that it read. Does the same as `ReadingOrder` in plain Python
// (selfspan_core/engine/reading_order.py), its specification. By one thread; names are indices of anchors.
//
// Macros: see tracker.cuh.
#pragma once
#include <tracker.cuh>

// Places over which a read may jump and still be learned from.
constexpr int MAX_OFFSET = 15, NUM_OFFSETS = 2 * MAX_OFFSET + 1;
// What stands on either side of the newest result: nothing, a segment of the prompt, or a result.
constexpr int BESIDE_NOTHING = 0, BESIDE_PROMPT = 1, BESIDE_RESULT = 2, NUM_SITUATIONS = 9;
constexpr int MAX_FIXED = 8;  // most tokens of a task's fixed words
constexpr int NO_NAME = -1;

// The part of the order that changes when a step closes.
struct LiveSegments {
    int num_live;
    int newest;                       // the result of the last step, or NO_NAME
    int num_by_reads[MAX_READS + 1];  // steps that read so many segments
    short live[NUM_ANCHORS];

    DEVICE int place_of(int name) const {
        for (int i = 0; i < num_live; i++)
            if (live[i] == name) return i;
        return NO_NAME;
    }

    // Segments that a header is likely to name: the most frequent number, of equals the lowest.
    DEVICE int num_reads() const {
        int best = 0;
        for (int i = 1; i <= MAX_READS; i++)
            if (num_by_reads[i] > num_by_reads[best]) best = i;
        return best;
    }

    DEVICE void close(int name, const int* reads, int num_reads) {
        auto is_read = [&](int one) {
            for (int i = 0; i < num_reads; i++)
                if (reads[i] == one) return true;
            return false;
        };
        int at = num_live;
        for (int i = 0; i < num_reads; i++) {
            int place = place_of(reads[i]);
            if (place >= 0) at = min(at, place);
        }
        int end = at, carried = name;
        for (int i = at; i < num_live; i++) {
            int one = live[i];
            if (is_read(one)) continue;
            live[end++] = (short)carried;
            carried = one;
        }
        if (end < NUM_ANCHORS) live[end++] = (short)carried;
        num_live = end;
        num_by_reads[num_reads]++;
        newest = name;
    }
};

struct ReadingOrder : LiveSegments {
    int last_name;  // that was given to a segment, or NO_NAME
    // A task's fixed words: ids that may stand between two copies, and those behind them.
    int num_between, between[MAX_FIXED], num_behind, behind[MAX_FIXED];
    Interval extents[NUM_ANCHORS];              // of the prompt's text that a segment stands for; an end of 0: none
    u32 is_of_prompt[(NUM_ANCHORS + 31) / 32];  // a bit per name
    short num_by_offset[NUM_SITUATIONS][NUM_OFFSETS];

    DEVICE int beside(const LiveSegments& now, int place) const {
        if (place < 0 || place >= now.num_live) return BESIDE_NOTHING;
        int name = now.live[place];
        return is_of_prompt[name / 32] >> name % 32 & 1 ? BESIDE_PROMPT : BESIDE_RESULT;
    }

    // The place of the read behind the newest result, which stands at `at`, relative to it: the most frequent one, of
    // several the nearest, of two such the lower. Nothing seen yet: a result between two others is joined to the one
    // before it, else it is read first.
    DEVICE int likely_offset(const LiveSegments& now, int at) const {
        int left = beside(now, at - 1);
        const short* seen = num_by_offset[3 * left + beside(now, at + 1)];
        int best = 0;
        for (int size = 0; size <= MAX_OFFSET; size++)
            for (int offset = -size; offset <= size; offset += size ? 2 * size : 1)
                if (seen[MAX_OFFSET + offset] > seen[MAX_OFFSET + best]) best = offset;
        return seen[MAX_OFFSET + best] ? best : left == BESIDE_RESULT ? -1 : 0;
    }

    // The segment that a header is likely to name behind those that it names already, or NO_NAME.
    DEVICE int next_read(const LiveSegments& now, const int* reads, int num) const {
        int at = 0;
        if (num > 0) {
            at = now.place_of(reads[num - 1]) + 1;
            if (at == 0) return NO_NAME;
        } else {
            int newest_at = now.place_of(now.newest);
            if (newest_at >= 0) at = newest_at + likely_offset(now, newest_at);
        }
        return 0 <= at && at < now.num_live ? now.live[at] : NO_NAME;
    }

    // A well-formed step of one read or more is over.
    DEVICE void learn(int name, const int* reads, int num) {
        int newest_at = place_of(newest), first_at = place_of(reads[0]);
        if (newest_at >= 0 && first_at >= 0) {
            int offset = first_at - newest_at;
            int situation = 3 * beside(*this, newest_at - 1) + beside(*this, newest_at + 1);
            if (-MAX_OFFSET <= offset && offset <= MAX_OFFSET) num_by_offset[situation][MAX_OFFSET + offset]++;
        }
        Interval all = {0, 0};
        for (int i = 0; i < num; i++) {
            Interval one = extents[reads[i]];
            if (one.end == 0) continue;
            all = all.end == 0 ? one : Interval{min(all.start, one.start), max(all.end, one.end)};
        }
        if (all.end > 0) extents[name] = all;
        close(name, reads, num);
    }
};
static_assert(sizeof(LiveSegments) == 4 * (2 + MAX_READS + 1 + (NUM_ANCHORS + 1) / 2), "drafts.py says the same");
