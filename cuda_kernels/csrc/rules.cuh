// Rules of a row, kept without the host: which ids may come next, behind the row's last id and behind each of its
// drafts. Does the same as `TabledRules` in selfspan_core/engine/tabled_rules.py, its specification. By a block.
//
// Macros: see tracker.cuh; besides MAX_QUERIES.
#pragma once
#include <limits.cuh>
#include <tracker.cuh>

constexpr int RULES_NONE = 0, RULES_BETWEEN = 1, RULES_HEADER = 2, RULES_BODY = 3;
constexpr int SOURCE_BEFORE = 4;  // ids before a sentence that are looked at to see whether another one ends there
constexpr int ROOM_FOR_RUNS = 128;

// What changes from id to id.
struct RuleState {
    int phase, num_done;  // bodies that are done
    int num_header, header[MAX_READS + 1];
    int body_start, body_length, num_said, is_ended;
    u32 readable[NUM_NAME_WORDS];

    DEVICE int num_reads() const { return max(0, num_header - 1); }
    DEVICE bool can_read(int name) const { return readable[name / 32] >> name % 32 & 1; }
    DEVICE bool has_readable() const {
        u32 any = 0;
        for (int i = 0; i < NUM_NAME_WORDS; i++) any |= readable[i];
        return any != 0;
    }
};

// A row's rules: rules.py makes them. Names are indices of anchors.
struct RuledRow {
    RuleState state;
    Interval bodies[MOST_STEPS];  // that are done
    int annotated, fewest_steps, most_steps, most_reads, shortest_body, longest_body, ngram, start;
    int opening, source_start, source_end, num_runs;
    int fresh[MOST_STEPS];          // ids
    Interval extents[NUM_ANCHORS];  // of the text of the prompt's segments
    int places[NUM_ANCHORS];        // of these, in the order of the text; -1 of other names
    u32 is_ended[NUM_NAME_WORDS];   // segments that end as a sentence does
};

// RUN_WORDS words in a row of a segment. Of a row they are in the order of their sums.
struct Run {
    u32 sum;
    int name, start;  // of the first word's first letter in `codes`
};

// What all rows share; and of every row, what is looked up.
struct RuleArguments {
    RuledRow* rows;
    IdTables ids;
    const Run* runs;   // [batch, max_runs]
    const int* codes;  // [batch, max_codes]: words letter by letter, a 0 behind each
    Limits* limits;    // [batch, MAX_QUERIES], are written
    int max_runs, max_codes;
};

struct SharedRules {
    RuledRow row;
    RuleState states[MAX_QUERIES];  // behind the last id and behind every draft
    int num_pushed, is_over, num_allowed, num_found, has_more;
    int left_out[NUM_NAME_WORDS];
    BodyBytes body;
    RunReader reader;
    u32 sums[ROOM_FOR_RUNS];
    BodyPlace places[ROOM_FOR_RUNS];
};

template <int NUM_THREADS>
struct RowRules {
    SharedRules& shared;
    const IdTables& ids;
    const short* kinds;
    const int *text, *drafts;
    int length;  // of the text; drafts stand behind it
    int go, end, eos;
    const Run* runs;
    const int* codes;

    DEVICE int token_at(int position) const { return position < length ? text[position] : drafts[position - length]; }

    // ---- ids go in

    DEVICE void open_body(int position) {
        RuleState& state = shared.row.state;
        state.phase = RULES_BODY;
        state.body_start = position;
        state.body_length = state.num_said = state.is_ended = 0;
    }

    // One id; by one thread. Whether a body is over behind which a header may come.
    DEVICE bool push(int token, int position) {
        RuledRow& row = shared.row;
        RuleState& state = row.state;
        int kind = kinds[token];
        if (state.phase == RULES_HEADER) {
            bool is_name = 0 <= kind && kind < NUM_ANCHORS;
            if (kind == KIND_GO) open_body(position + 1);
            if (is_name && state.num_header <= MAX_READS) state.header[state.num_header++] = kind;
            return false;
        }
        bool is_opening = token == row.opening, was_body = state.phase == RULES_BODY;
        if (was_body && kind != KIND_END && kind != KIND_EOS && (row.annotated || !is_opening)) {
            int of_class = ids.classes[token];
            state.body_length++;
            if (of_class & CLASS_ENDS) state.is_ended = 1;
            if (!(of_class & (CLASS_ENDS | CLASS_CLOSES))) state.is_ended = 0, state.num_said++;
            return false;
        }
        if (was_body) {
            if (state.num_done < MOST_STEPS)
                row.bodies[state.num_done] = {state.body_start, state.body_start + state.body_length};
            state.num_done++;
        }
        state.phase = RULES_BETWEEN;
        if (is_opening && row.annotated) state.phase = RULES_HEADER, state.num_header = 0;
        if (is_opening && !row.annotated) state.num_header = 0, open_body(position + 1);
        return was_body && row.annotated && state.num_done < row.most_steps;
    }

    // `num` ids from a position on; by the block. The state behind each may be kept in `states`, from the second on.
    DEVICE void push_all(int first, int num, bool keeps_states) {
        __syncthreads();
        if (threadIdx.x == 0) shared.num_pushed = 0;
        while (true) {
            if (threadIdx.x == 0) {
                shared.is_over = false;
                while (shared.num_pushed < num && !shared.is_over) {
                    int position = first + shared.num_pushed++;
                    shared.is_over = push(token_at(position), position);
                    if (keeps_states) shared.states[shared.num_pushed] = shared.row.state;
                }
            }
            __syncthreads();
            if (!shared.is_over) return;
            leave_out();
            if (threadIdx.x == 0 && keeps_states) shared.states[shared.num_pushed] = shared.row.state;
        }
    }

    // ---- which segments are no longer readable

    // Behind a body: those that it read, and those that it repeats. By the block.
    DEVICE void leave_out() {
        RuleState& state = shared.row.state;
        for (int i = threadIdx.x; i < NUM_NAME_WORDS; i += NUM_THREADS) shared.left_out[i] = 0;
        load_body();
        if (threadIdx.x == 0) {
            for (int i = 0; i < state.num_reads(); i++)
                shared.left_out[state.header[i] / 32] |= 1 << state.header[i] % 32;
            shared.reader.begin();
        }
        do {
            __syncthreads();
            if (threadIdx.x == 0) {
                int num = 0;
                while (num < ROOM_FOR_RUNS && shared.reader.next(shared.body, shared.sums[num], shared.places[num]))
                    num++;
                shared.num_found = num;
                shared.has_more = num == ROOM_FOR_RUNS;
            }
            __syncthreads();
            for (int i = threadIdx.x; i < shared.num_found; i += NUM_THREADS)
                leave_out_with(shared.sums[i], shared.places[i]);
        } while (shared.has_more);
        __syncthreads();
        for (int i = threadIdx.x; i < NUM_NAME_WORDS; i += NUM_THREADS) state.readable[i] &= ~shared.left_out[i];
        __syncthreads();
    }

    DEVICE void load_body() {
        BodyBytes& body = shared.body;
        RuleState& state = shared.row.state;
        int num = min(state.body_length, MOST_BODY);
        for (int i = threadIdx.x; i < num; i += NUM_THREADS) {
            int token = token_at(state.body_start + i), start = ids.starts[token];
            body.starts[i] = start, body.sizes[i] = ids.starts[token + 1] - start;
            for (int at = 0; at < min(body.sizes[i], BodyBytes::NUM_FIRST); at++)
                body.first[i][at] = ids.text[start + at];
        }
        if (threadIdx.x == 0) body.num = num, body.text = ids.text, body.characters = ids.characters;
        __syncthreads();
        // A run of single bytes is text as a whole or not at all. By its first one's thread.
        for (int i = threadIdx.x; i < num; i += NUM_THREADS) {
            if (!is_byte(i) || (i > 0 && is_byte(i - 1))) continue;
            int behind = i + 1;
            while (behind < num && is_byte(behind)) behind++;
            if (is_utf8(i, behind)) continue;
            for (int j = i; j < behind; j++) body.first[j][0] = 0xff;
        }
    }

    DEVICE bool is_byte(int i) const { return ids.classes[token_at(shared.row.state.body_start + i)] & CLASS_BYTE; }

    // Whether single bytes from one id of the body to another are whole characters; a 0 among them is one.
    DEVICE bool is_utf8(int from, int to) const {
        WordReader reader;
        reader.begin({from, 0});
        bool is_whole = true;
        for (int next = reader.peek(shared.body); reader.place.id < to; next = reader.peek(shared.body))
            is_whole &= reader.character(shared.body) != 0 || next == 0;
        return is_whole;
    }

    // Segments that have a run of words of the body.
    DEVICE void leave_out_with(u32 sum, BodyPlace place) {
        int low = 0, num = shared.row.num_runs, high = num;
        while (low < high) {
            int middle = (low + high) / 2;
            if (runs[middle].sum < sum)
                low = middle + 1;
            else
                high = middle;
        }
        for (; low < num && runs[low].sum == sum; low++) {
            int name = runs[low].name;
            if (shared.row.state.can_read(name) && !is_read(name) && is_same(runs[low].start, place))
                atomicOr(&shared.left_out[name / 32], 1 << name % 32);
        }
    }

    DEVICE bool is_read(int name) const {
        const RuleState& state = shared.row.state;
        bool is_one = false;
        for (int i = 0; i < state.num_reads(); i++) is_one |= state.header[i] == name;
        return is_one;
    }

    // Letter by letter: two runs may have the same sum.
    DEVICE bool is_same(int start, BodyPlace place) const {
        WordReader reader;
        reader.begin(place);
        for (int num_words = 0; num_words < RUN_WORDS; start++) {
            int code = reader.letter(shared.body);
            if (code != codes[start]) return false;
            num_words += code == 0;
        }
        return true;
    }

    // ---- what may come

    // The limits of every query, and how many drafts they let through; by the block. Sets `num_allowed`.
    DEVICE void write_limits(int num_drafts, Limits* limits) {
        if (threadIdx.x == 0) shared.num_allowed = num_drafts;
        __syncthreads();
        for (int query = threadIdx.x / 32; query <= num_drafts; query += NUM_THREADS / 32) {
            Limits& own = limits[query];
            write(shared.states[query], own);
            __syncwarp();
            bool is_cut = query < num_drafts && !is_allowed(own, drafts[query]);
            if (is_cut && threadIdx.x % 32 == 0) atomicMin(&shared.num_allowed, query);
        }
        __syncthreads();
    }

    DEVICE bool is_allowed(const Limits& own, int token) const {
        if (own.is_exact(token)) return true;
        if (own.mode == Limits::ONLY) return own.has_name(kinds[token]);
        if (own.mode == Limits::WAYS) return own.is_way(token);
        return !(ids.classes[token] & CLASS_UNFIT) && !own.is_banned(token);
    }

    // The step that follows `num_done` others, or the end: one or two ids; how many.
    DEVICE int between(const RuleState& state, int num_done, int* exact) const {
        const RuledRow& row = shared.row;
        bool goes_on = num_done < row.most_steps && (!row.annotated || state.has_readable());
        int num = 0;
        if (goes_on) exact[num++] = row.opening;
        if (!goes_on || num_done >= row.fewest_steps) exact[num++] = eos;
        return num;
    }

    // By one warp.
    DEVICE void write(const RuleState& state, Limits& limits) const {
        int lane = threadIdx.x % 32;
        if (lane == 0) {
            limits.mode = Limits::ONLY;
            limits.num_exact = limits.num_banned = limits.num_ways = 0;
            if (state.phase == RULES_BETWEEN) limits.num_exact = between(state, state.num_done, limits.exact);
            if (state.phase == RULES_HEADER && state.num_header > 0) {
                limits.exact[0] = has_name(state) ? go : shared.row.fresh[min(state.num_done, MOST_STEPS - 1)];
                limits.num_exact = 1;
            }
        }
        for (int word = lane; word < NUM_NAME_WORDS; word += 32)
            limits.names[word] = state.phase == RULES_HEADER ? names_to_read(state, word) : 0;
        if (state.phase == RULES_BODY) write_body(state, limits);
    }

    // Whether a header has the step's own name already.
    DEVICE bool has_name(const RuleState& state) const {
        return state.num_header > 0 && shared.row.places[state.header[state.num_header - 1]] < 0;
    }

    // The names that a header may read next, 32 of them.
    DEVICE u32 names_to_read(const RuleState& state, int word) const {
        const RuledRow& row = shared.row;
        if (state.num_header == 0) return state.readable[word];
        if (has_name(state) || state.num_header >= row.most_reads) return 0;
        int first = row.places[state.header[0]];
        u32 names = 0;
        for (u32 rest = state.readable[word]; rest; rest &= rest - 1) {
            int bit = __ffs(rest) - 1;
            if (row.places[32 * word + bit] > first) names |= 1u << bit;
        }
        return names;
    }

    DEVICE void write_body(const RuleState& state, Limits& limits) const {
        const RuledRow& row = shared.row;
        int lane = threadIdx.x % 32, num = state.body_length;
        bool may_end = num >= row.longest_body;
        if (!may_end && state.num_said >= row.shortest_body)
            may_end = state.is_ended || is_at_open_end(state);
        else if (!may_end)
            may_end = is_source(state);
        if (lane == 0 && may_end) {
            limits.exact[0] = end;
            limits.num_exact = row.annotated ? 1 : between(state, state.num_done + 1, limits.exact);
        }
        if (num >= row.longest_body) return;
        int num_banned = 0, window = row.ngram - 1;
        for (int first = window; num >= row.ngram && first < num; first += 32) {
            int place = first + lane;
            bool repeats = place < num && is_same_text(state.body_start + place - window, num - window, state, window);
            u32 all = __ballot_sync(FULL_WARP, repeats);
            int at = num_banned + __popc(all & ((1u << lane) - 1));
            if (repeats && at < MOST_BANNED) limits.banned[at] = token_at(state.body_start + place);
            num_banned = min(num_banned + __popc(all), MOST_BANNED);
        }
        if (lane == 0) limits.mode = Limits::BODY, limits.num_banned = num_banned;
        __syncwarp();
        if (num < row.start) write_onward(state, limits);
    }

    // What keeps a body from a beginning that an earlier one has.
    DEVICE void write_onward(const RuleState& state, Limits& limits) const {
        const RuledRow& row = shared.row;
        int lane = threadIdx.x % 32, num = state.body_length, num_banned = limits.num_banned, num_begun = 0;
        for (int i = 0; (!row.annotated || num == row.start - 1) && i < min(state.num_done, MOST_STEPS); i++) {
            Interval other = row.bodies[i];
            if (other.end - other.start < row.start || num_banned + num_begun == MOST_BANNED ||
                !is_same_text(other.start, 0, state, num) || (!row.annotated && is_led_to(other.start, num + 1, state)))
                continue;
            if (lane == 0) limits.banned[num_banned + num_begun] = token_at(other.start + num);
            num_begun++;
        }
        bool is_turned = num_begun > 0 && !row.annotated && num > 0;
        if (is_turned) write_ways(state, limits);
        if (lane == 0 && !is_turned) limits.num_banned = num_banned + num_begun;
        __syncwarp();
    }

    // A body goes on as a sentence does that begins as it does and that no body has begun, if there is one.
    DEVICE void write_ways(const RuleState& state, Limits& limits) const {
        const RuledRow& row = shared.row;
        int lane = threadIdx.x % 32, num = state.body_length, num_ways = 0;
        for (int first = row.source_start; first + num < row.source_end && num_ways < MOST_WAYS; first += 32) {
            int at = first + lane;
            bool is_one = at + num < row.source_end && is_fresh(at, state.body_start, num, state);
            is_one = is_one && !(ids.classes[text[at + num]] & CLASS_UNFIT) && !limits.is_banned(text[at + num]);
            u32 all = __ballot_sync(FULL_WARP, is_one);
            int place = num_ways + __popc(all & ((1u << lane) - 1));
            if (is_one && place < MOST_WAYS) limits.ways[place] = text[at + num];
            num_ways = min(num_ways + __popc(all), MOST_WAYS);
        }
        if (lane == 0 && num_ways > 0) limits.mode = Limits::WAYS, limits.num_ways = num_ways;
    }

    // Whether so many ids from a position on are those of the body from a place on.
    DEVICE bool is_same_text(int position, int place, const RuleState& state, int num) const {
        for (int i = 0; i < num; i++)
            if (token_at(position + i) != token_at(state.body_start + place + i)) return false;
        return true;
    }

    // Whether a sentence of the text that no body has begun begins with `num` ids from a position on. By one warp.
    DEVICE bool is_led_to(int position, int num, const RuleState& state) const {
        bool is_one = false;
        for (int at = shared.row.source_start + (int)threadIdx.x % 32; at + num <= shared.row.source_end; at += 32)
            is_one |= is_fresh(at, position, num, state);
        return __ballot_sync(FULL_WARP, is_one) != 0;
    }

    // Whether a sentence begins at a place of the text, with `num` ids from a position on, that no body has begun.
    DEVICE bool is_fresh(int at, int position, int num, const RuleState& state) const {
        const RuledRow& row = shared.row;
        if (at > row.source_start && !(ids.classes[text[at - 1]] & (CLASS_ENDS | CLASS_CLOSES | CLASS_UNFIT)))
            return false;
        if (!is_same_start(at, position, num)) return false;
        bool is_begun = false;
        for (int i = 0; at + row.start <= row.source_end && i < min(state.num_done, MOST_STEPS); i++)
            is_begun |= row.bodies[i].end - row.bodies[i].start >= row.start &&
                        is_same_start(at, row.bodies[i].start, row.start);
        return !is_begun;
    }

    DEVICE bool is_same_start(int at, int position, int num) const {
        for (int i = 0; i < num; i++)
            if (text[at + i] != token_at(position + i)) return false;
        return true;
    }

    // Whether the body's last ids are those of a segment that it reads and that does not end as a sentence does.
    DEVICE bool is_at_open_end(const RuleState& state) const {
        int num = shared.row.shortest_body;
        bool is_one = false;
        for (int i = 0; i < state.num_reads(); i++) {
            int name = state.header[i];
            Interval source = shared.row.extents[name];
            bool is_ended = shared.row.is_ended[name / 32] >> name % 32 & 1;
            if (is_ended || source.end - source.start < num) continue;
            is_one |= is_same_text(source.end - num, state.body_length - num, state, num);
        }
        return is_one;
    }

    // Whether the body is what it reads, or one segment of that; without headers, a sentence of the text.
    DEVICE bool is_source(const RuleState& state) const {
        const RuledRow& row = shared.row;
        int length = state.body_length;
        if (!row.annotated) return state.is_ended && is_sentence(state);
        bool is_one = false, is_all = true;
        int at = 0;
        for (int i = 0; i < state.num_reads(); i++) {
            Interval source = row.extents[state.header[i]];
            int num = source.end - source.start;
            is_one |= num == length && is_same_text(source.start, 0, state, num);
            is_all = is_all && at + num <= length && is_same_text(source.start, at, state, num);
            at += num;
        }
        return is_one || (is_all && at == length);
    }

    // By one warp: so does every lane of it answer.
    DEVICE bool is_sentence(const RuleState& state) const {
        int start = shared.row.source_start, last = shared.row.source_end - state.body_length;
        bool is_one = false;
        for (int at = start + (int)threadIdx.x % 32; at <= last; at += 32)
            is_one |= is_same_text(at, 0, state, state.body_length) && (at == start || ends_before(at));
        return __ballot_sync(FULL_WARP, is_one) != 0;
    }

    DEVICE bool ends_before(int position) const {
        int first = max(shared.row.source_start, position - SOURCE_BEFORE);
        for (int at = position - 1; at >= first; at--) {
            int of_class = ids.classes[text[at]];
            if (!(of_class & CLASS_CLOSES)) return of_class & CLASS_ENDS;
        }
        return false;
    }
};
