// The span protocol's tracker on the device: ids in, visible intervals out, by one thread. It does the same as the
// tracker in plain Python (selfspan_core/spans/tracker.py), its specification, which names the states.
//
// Macros: NUM_ANCHORS, MAX_READS (segments that a header may name), MAX_BODY_TOKENS.
#pragma once
#include <ptx.cuh>

constexpr int PHASE_BETWEEN = 0, PHASE_HEADER = 1, PHASE_BODY = 2, PHASE_BROKEN = 3, PHASE_DONE = 4;
// A row without a sequence: it sees nothing, whatever its id.
constexpr int PHASE_IDLE = 5;

// Kinds of ids: an anchor's index, or one of these.
constexpr int KIND_TEXT = -1, KIND_REF = NUM_ANCHORS, KIND_GO = NUM_ANCHORS + 1, KIND_RES = NUM_ANCHORS + 2,
              KIND_END = NUM_ANCHORS + 3, KIND_EOS = NUM_ANCHORS + 4;

// Flags of a report; the phase is in its lower bits.
constexpr int FLAG_MALFORMED = 8, FLAG_HEADER_CLOSED = 16;

// Scaffold, the segments that are read, and the step itself.
constexpr int MAX_INTERVALS = MAX_READS + 2;
// What headers see where they see an index: of the prompt a piece for each name that it gives and one more, of every
// step its name and the beginning of what can be cited. No name is given twice.
constexpr int MAX_INDEX = 2 * NUM_ANCHORS + 1;

// Half-open. Not int2, whose alignment would leave gaps in a row's state.
struct Interval {
    int start, end;
};

// A row's state between two ids. The host sets it at the start of a sequence: `position` is that of the prompt's last
// token, `phase` is BETWEEN.
struct Track {
    int position;
    int phase;
    int annotated;                             // whether text outside of steps breaks the grammar
    int scaffold_end;                          // everyone sees [0, scaffold_end)
    int step_start, body_start, result_start;  // of the open step; result_start is -1 before its <|res|>
    int name;                                  // of the open step
    int num_named;
    int named[MAX_READS + 1];
    int num_context;
    Interval context[MAX_READS + 1];  // what the open body sees outside of its own step
    // Of headers that see an index, in which segments have so many tokens behind their name; 0: they see everything.
    int head_tokens;
    int num_index;         // intervals of the index
    int num_header_index;  // of those that headers see beside the last step, which they see whole
    int header_start;      // where the last step begins, or -1 before there is one
};
static_assert(sizeof(Track) == 4 * (14 + 3 * (MAX_READS + 1)), "Grammar.track_words in tracker.py says the same");

// A row's state, and the segment of every anchor, [NUM_ANCHORS]; an end of 0 means that the anchor has none. index:
// [MAX_INDEX], or null where no row has head_tokens.
struct Row {
    Track& track;
    int2* segments;
    int2* index;

    DEVICE bool has(int anchor) const { return segments[anchor].y > 0; }

    DEVICE int broken() {
        track.phase = PHASE_BROKEN;
        return PHASE_BROKEN | FLAG_MALFORMED;
    }

    DEVICE void open(int phase) {
        track.phase = phase;
        track.step_start = track.position;
        track.num_named = 0;
    }

    DEVICE int push(int kind) {
        track.position++;
        if (track.phase == PHASE_DONE) return PHASE_DONE;
        if (kind == KIND_EOS) {
            bool was_open = track.phase == PHASE_HEADER || track.phase == PHASE_BODY;
            track.phase = PHASE_DONE;
            return PHASE_DONE | (was_open ? FLAG_MALFORMED : 0);
        }
        if (track.phase == PHASE_HEADER) return in_header(kind);
        if (track.phase == PHASE_BODY) return in_body(kind);
        if (track.phase == PHASE_BROKEN) return in_broken(kind);
        return in_between(kind);
    }

    DEVICE int in_between(int kind) {
        if (kind == KIND_REF) {
            open(PHASE_HEADER);
            return PHASE_HEADER;
        }
        if (track.annotated) {
            open(PHASE_BROKEN);
            return broken();
        }
        return track.phase;
    }

    DEVICE int in_header(int kind) {
        if (kind == KIND_GO) return close_header();
        if (kind < 0 || kind >= NUM_ANCHORS || track.num_named > MAX_READS) return broken();
        track.named[track.num_named++] = kind;
        return PHASE_HEADER;
    }

    DEVICE int close_header() {
        int num_reads = track.num_named - 1;
        if (num_reads < 0) return broken();
        track.name = track.named[num_reads];
        for (int i = 0; i < num_reads; i++)
            if (!has(track.named[i])) return broken();
        if (has(track.name)) return broken();
        track.num_context = 0;
        add_interval({0, track.scaffold_end});
        for (int i = 0; i < num_reads; i++) add_interval({segments[track.named[i]].x, segments[track.named[i]].y});
        merge_intervals();
        track.body_start = track.position + 1;
        track.result_start = -1;
        track.phase = PHASE_BODY;
        // <|go|> is the header's last token: it still sees what the header sees.
        return PHASE_HEADER | FLAG_HEADER_CLOSED;
    }

    // Inserts an interval, ordered by its start.
    DEVICE void add_interval(Interval interval) {
        if (interval.start >= interval.end) return;
        int at = track.num_context++;
        for (; at > 0 && track.context[at - 1].start > interval.start; at--) track.context[at] = track.context[at - 1];
        track.context[at] = interval;
    }

    // Joins intervals that overlap or touch.
    DEVICE void merge_intervals() {
        int count = 0;
        for (int i = 0; i < track.num_context; i++) {
            Interval next = track.context[i];
            if (count > 0 && next.start <= track.context[count - 1].end)
                track.context[count - 1].end = max(track.context[count - 1].end, next.end);
            else
                track.context[count++] = next;
        }
        track.num_context = count;
    }

    DEVICE int in_body(int kind) {
        if (kind == KIND_END) return close_step();
        if (track.position - track.body_start >= MAX_BODY_TOKENS) return broken();
        if (kind == KIND_RES && track.result_start < 0) {
            track.result_start = track.position;
            return PHASE_BODY;
        }
        return kind == KIND_TEXT ? PHASE_BODY : broken();
    }

    DEVICE int close_step() {
        track.phase = PHASE_BETWEEN;
        bool has_result = track.result_start >= 0;
        int start = has_result ? track.result_start : track.body_start;
        if (track.position - start <= has_result) return PHASE_BETWEEN | FLAG_MALFORMED;
        segments[track.name] = make_int2(start, track.position);
        if (track.head_tokens > 0) take_into_index(start, start + has_result + track.head_tokens);
        return PHASE_BETWEEN;
    }

    // A step is over: the next header sees it whole, those behind it its name and its citable part's beginning.
    DEVICE void take_into_index(int start, int head_end) {
        track.num_header_index = track.num_index;
        track.header_start = track.step_start;
        index[track.num_index++] = make_int2(track.body_start - 2, track.body_start - 1);
        index[track.num_index++] = make_int2(start, min(head_end, track.position));
    }

    DEVICE int in_broken(int kind) {
        bool is_too_long = track.position - track.step_start >= MAX_BODY_TOKENS;
        if (kind == KIND_END || is_too_long) {
            track.phase = PHASE_BETWEEN;
            return PHASE_BETWEEN;
        }
        return kind == KIND_REF ? in_between(kind) : PHASE_BROKEN;
    }

    // Writes the intervals that the query of the id just pushed sees, itself included; returns their number. phase:
    // that `push` has reported of it. is_dense: it sees everything.
    DEVICE int visible(int2* intervals, int phase, bool is_dense) const {
        int end = track.position + 1, count = 0, own_start = 0;
        if (!is_dense && phase == PHASE_BODY) {
            own_start = track.step_start;
            for (; count < track.num_context; count++)
                intervals[count] = make_int2(track.context[count].start, track.context[count].end);
        } else if (!is_dense && track.head_tokens > 0 && (phase == PHASE_HEADER || phase == PHASE_BETWEEN)) {
            own_start = track.header_start >= 0 ? track.header_start : min(track.step_start, track.position);
            for (; count < track.num_header_index; count++) intervals[count] = index[count];
        }
        if (count > 0 && intervals[count - 1].y == own_start) own_start = intervals[--count].x;
        intervals[count] = make_int2(own_start, end);
        return count + 1;
    }
};
