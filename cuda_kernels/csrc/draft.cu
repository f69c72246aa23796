// Drafts of a batch, without the host: what the last round kept goes through the trackers, every row proposes what
// comes next, and what each of its queries sees becomes one table of intervals with masks. After the model has run,
// `selfspan_accept` keeps the drafts that are what was drawn. One block per row.
//
// The specification of the proposals is `FirstCandidate` in selfspan_core/engine/device_drafts.py: copies of the
// segments that a header names, the protocol's grammar, and prompt lookup.
//
// Rows may be held to rules (rules.cuh), which then say what may be drawn behind every query, and cut what is proposed.
//
// Macros: see tracker.cuh; besides MAX_QUERIES (of a row), MAX_COPIED (tokens of a body that are looked at) and
// HAS_RULES (whether rows of the batch may have rules).
#include <reading_order.cuh>
#if HAS_RULES
#include <rules.cuh>
#endif

constexpr int NUM_THREADS = 128;
constexpr int MAX_NGRAM = 3;
constexpr int MAX_CONTEXTS = 2;  // bodies that one pass may touch
constexpr int NUM_EDGES = MAX_CONTEXTS * (2 * (MAX_READS + 1) + 1) + 2;
static_assert(NUM_EDGES <= NUM_THREADS, "a thread per edge");
constexpr int NOT_FOUND = 0x7fffffff;
// In `injected`: the row proposes its own drafts.
constexpr int OWN_DRAFTS = -2;

// A part of a candidate: a marker, a token, a stretch of text without its markers, or the first token of a stretch that
// may stand between two copies.
struct Piece {
    enum Type { MARKER, TOKEN, COPY, BETWEEN } type;
    int start, end;  // of the text; of a marker or a token `start` is its kind or id
};
constexpr int MAX_PIECES = 4 * MAX_READS + 2 * MAX_FIXED + 8;

// What all rows share.
struct Vocabulary {
    const short* kinds;       // [vocab_size]
    const int* ids_of_kinds;  // [NUM_ANCHORS + 5]
    int vocab_size;
};

struct SharedStorage {
    Track track, saved;
    ReadingOrder order;
    LiveSegments after;  // the order behind the step that is being written
    int2 segments[NUM_ANCHORS];
    int kinds[MAX_QUERIES];
    Piece pieces[MAX_PIECES];
    int num_pieces;
    int whole[MAX_COPIED], num_whole;  // a body that copies what it reads
    int drafts[MAX_QUERIES], num_drafts;
    int is_prefix, found[MAX_NGRAM];
    int report, is_changed, wants_lookup, at;
    // Per body, what it sees outside of itself and where it begins; who sees what, as bits of queries.
    Interval contexts[MAX_CONTEXTS][MAX_READS + 1];
    int num_context[MAX_CONTEXTS], own_start[MAX_CONTEXTS], num_contexts;
    u32 sees_all, sees[MAX_CONTEXTS];
    int edges[NUM_EDGES], sorted[NUM_EDGES];
    u32 segment_masks[NUM_EDGES];
#if HAS_RULES
    SharedRules rules;
#endif
};

template <class T>
DEVICE void copy_words(T& to, const T& from) {
    static_assert(sizeof(T) % 2 == 0, "copied by halves of words");
    for (int i = threadIdx.x; i < (int)sizeof(T) / 2; i += NUM_THREADS)
        reinterpret_cast<short*>(&to)[i] = reinterpret_cast<const short*>(&from)[i];
}

// One row of the batch, whose state lies in shared memory.
struct DraftedRow {
    SharedStorage& shared;
    const Vocabulary& vocabulary;
    const int* text;  // prompt and answer
    int length;       // of the text, the first query included

    DEVICE Row tracker() const { return {shared.track, shared.segments, nullptr}; }
    DEVICE bool has(int name) const { return shared.segments[name].y > 0; }

    // ---- what is certain

    // Whether this id has just given a segment its name.
    DEVICE bool has_closed(int phase_before, int kind, int report) const {
        return phase_before == PHASE_BODY && kind == KIND_END && !(report & FLAG_MALFORMED);
    }

    DEVICE void push(int kind) {
        Track& track = shared.track;
        int phase = track.phase;
        shared.report = tracker().push(kind);
        if (!has_closed(phase, kind, shared.report)) return;
        shared.is_changed = true;
        shared.order.last_name = track.name;
        if (track.num_named > 1) shared.order.learn(track.name, track.named, track.num_named - 1);
    }

    // ---- candidates, as pieces; by one thread

    DEVICE void add(Piece piece) {
        if (shared.num_pieces < MAX_PIECES) shared.pieces[shared.num_pieces++] = piece;
    }

    // A body that copies what it reads, segment after segment.
    DEVICE void add_copies(const int* reads, int num) {
        const ReadingOrder& order = shared.order;
        for (int i = 0; i < num; i++) {
            if (reads[i] < 0 || reads[i] >= NUM_ANCHORS || !has(reads[i])) return;
            if (i > 0) {
                Interval left = order.extents[reads[i - 1]], right = order.extents[reads[i]];
                if (left.end > 0 && right.end > 0) add({Piece::BETWEEN, left.end, right.start});
            }
            add({Piece::COPY, shared.segments[reads[i]].x, shared.segments[reads[i]].y});
        }
        for (int i = 0; i < order.num_behind; i++) add({Piece::TOKEN, order.behind[i], 0});
    }

    // The rest of a header behind the names that it has, and its body. closing: the name of a step that has to end
    // before, or NO_NAME.
    DEVICE void add_header(const LiveSegments& now, const int* named, int num_named, int closing) {
        if (num_named > 0 && !has(named[num_named - 1])) {
            add({Piece::MARKER, KIND_GO, 0});
            return add_copies(named, num_named - 1);
        }
        int reads[MAX_READS + 1], num = num_named, num_likely = now.num_reads();
        bool reads_closing = false;
        for (int i = 0; i < num; i++) reads[i] = named[i];
        while (num < num_likely) {
            int read = shared.order.next_read(now, reads, num);
            if (read < 0) break;
            reads[num++] = read;
            add({Piece::MARKER, read, 0});
        }
        for (int i = 0; i < num; i++) reads_closing |= reads[i] == closing;
        int last = closing >= 0 ? closing : shared.order.last_name, name = (last + 1) % NUM_ANCHORS;
        if (num == 0 || num < num_likely || last < 0 || has(name)) return;
        add({Piece::MARKER, name, 0});
        add({Piece::MARKER, KIND_GO, 0});
        if (!reads_closing) add_copies(reads, num);
    }

    // The header behind the step that is being written. `after` holds the order as it is.
    DEVICE void add_next_step() {
        const Track& track = shared.track;
        int num_reads = track.num_named - 1;
        if (num_reads > 0) shared.after.close(track.name, track.named, num_reads);
        add({Piece::MARKER, KIND_REF, 0});
        add_header(shared.after, nullptr, 0, track.name);
    }

    // ---- pieces as tokens, behind `count` others and up to `limit`; by one warp

    DEVICE int expand(int* to, int count, int limit) const {
        int lane = threadIdx.x;
        for (int i = 0; i < shared.num_pieces && count < limit; i++) {
            Piece piece = shared.pieces[i];
            if (piece.type == Piece::COPY || piece.type == Piece::BETWEEN) {
                count = expand_text(piece, to, count, limit);
                continue;
            }
            int token = piece.type == Piece::MARKER ? vocabulary.ids_of_kinds[piece.start] : piece.start;
            if (lane == 0) to[count] = token;
            count++;
        }
        return count;
    }

    DEVICE int expand_text(Piece piece, int* to, int count, int limit) const {
        int lane = threadIdx.x;
        for (int first = piece.start; first < piece.end && count < limit; first += 32) {
            int at = first + lane, token = at < piece.end ? text[at] : -1;
            bool is_kept = false;
            if (token >= 0 && piece.type == Piece::COPY) is_kept = vocabulary.kinds[token] == KIND_TEXT;
            for (int i = 0; token >= 0 && piece.type == Piece::BETWEEN && i < shared.order.num_between; i++)
                is_kept |= token == shared.order.between[i];
            u32 kept = __ballot_sync(FULL_WARP, is_kept);
            if (piece.type == Piece::BETWEEN) kept &= -kept;  // the first only
            int place = count + __popc(kept & ((1u << lane) - 1));
            if ((kept >> lane & 1) && place < limit) to[place] = token;
            count = min(limit, count + __popc(kept));
            if (piece.type == Piece::BETWEEN && kept) break;
        }
        return count;
    }

    // ---- where a text goes on; by the block

    // Sets `at` to the place in `whole` behind what is written of the body, or to NOT_FOUND.
    DEVICE void align() {
        const int *written = text + shared.track.body_start, *whole = shared.whole;
        int num_written = length - shared.track.body_start, num_whole = shared.num_whole;
        if (threadIdx.x == 0) shared.is_prefix = num_written <= num_whole;
        if (threadIdx.x < MAX_NGRAM) shared.found[threadIdx.x] = NOT_FOUND;
        __syncthreads();
        if (shared.is_prefix) {
            bool differs = false;
            for (int i = threadIdx.x; i < num_written; i += NUM_THREADS) differs |= whole[i] != written[i];
            __syncthreads();
            if (differs) shared.is_prefix = false;
        }
        __syncthreads();
        bool is_prefix = shared.is_prefix;
        for (int end = 1 + threadIdx.x; !is_prefix && end <= num_whole; end += NUM_THREADS) {
            int size = 0;
            while (size < min(MAX_NGRAM, min(end, num_written)) &&
                   whole[end - 1 - size] == written[num_written - 1 - size])
                atomicMin(&shared.found[size++], end);
        }
        __syncthreads();
        if (threadIdx.x > 0) return;
        shared.at = is_prefix ? num_written : NOT_FOUND;
        for (int size = MAX_NGRAM; size > 0 && shared.at == NOT_FOUND; size--) shared.at = shared.found[size - 1];
    }

    // Prompt lookup: what stood behind the newest place where the last three, two, one tokens stood before.
    DEVICE void look_up(int most) {
        if (threadIdx.x < MAX_NGRAM) shared.found[threadIdx.x] = 0;
        __syncthreads();
        for (int end = 1 + threadIdx.x; end < length; end += NUM_THREADS) {
            int size = 0;
            while (size < min(MAX_NGRAM, end) && text[end - 1 - size] == text[length - 1 - size])
                atomicMax(&shared.found[size++], end);
        }
        __syncthreads();
        if (threadIdx.x >= 32) return;
        int lane = threadIdx.x, count = 0;
        for (int size = MAX_NGRAM; size > 0 && count == 0; size--) {
            int end = shared.found[size - 1];
            if (end == 0) continue;
            count = min(most, length - end);
            bool is_stop = lane < count && is_never_looked_up(vocabulary.kinds[text[end + lane]]);
            u32 stops = __ballot_sync(FULL_WARP, is_stop);
            if (stops) count = min(count, __ffs(stops) - 1);
            if (lane < count) shared.drafts[lane] = text[end + lane];
        }
        if (lane == 0) shared.num_drafts = count;
    }

    // A lane that writes steps takes its markers from the grammar.
    DEVICE bool is_never_looked_up(int kind) const {
        return shared.track.annotated && kind != KIND_TEXT && kind != KIND_RES && kind != KIND_END;
    }

    // ---- proposals

    // Writes `drafts`, `most` at most; by the block. `after` is a copy of the order.
    DEVICE void propose(int most) {
        int phase = shared.report & 7;
        bool is_annotated = shared.track.annotated;
        bool is_body = is_annotated && (phase == PHASE_BODY || (shared.report & FLAG_HEADER_CLOSED));
        bool is_header = is_annotated && !is_body && (phase == PHASE_HEADER || phase == PHASE_BETWEEN);
        if (threadIdx.x == 0) {
            const Track& track = shared.track;
            shared.num_pieces = shared.num_drafts = 0;
            shared.wants_lookup = !is_annotated;
            if (is_body) add_copies(track.named, track.num_named - 1);
            if (is_header && phase == PHASE_BETWEEN) add({Piece::MARKER, KIND_REF, 0});
            if (is_header) add_header(shared.order, track.named, phase == PHASE_HEADER ? track.num_named : 0, NO_NAME);
        }
        __syncthreads();
        if (is_body) propose_body(most);
        if (is_header && threadIdx.x < 32) {
            int count = expand(shared.drafts, 0, most);
            if (threadIdx.x == 0) shared.num_drafts = count;
        }
        __syncthreads();
        if (shared.wants_lookup) look_up(most);
        __syncthreads();
    }

    DEVICE void propose_body(int most) {
        if (threadIdx.x < 32) {
            int count = expand(shared.whole, 0, MAX_COPIED);
            if (threadIdx.x == 0) shared.num_whole = count;
        }
        __syncthreads();
        align();
        __syncthreads();
        if (threadIdx.x >= 32) return;
        int rest = shared.at == NOT_FOUND ? 0 : shared.num_whole - shared.at;
        if (threadIdx.x == 0) {
            const ReadingOrder& order = shared.order;
            int result_start = shared.track.result_start;
            bool is_whole = order.num_behind > 0 && vocabulary.kinds[order.behind[order.num_behind - 1]] == KIND_END;
            bool ends = rest == 0 && result_start >= 0 && length > result_start + 1;
            shared.num_pieces = 0;
            if (ends) add({Piece::MARKER, KIND_END, 0});
            if (ends || (rest > 0 && is_whole)) add_next_step();
            shared.wants_lookup = rest == 0 && !ends;
        }
        __syncwarp();
        int count = min(rest, most);
        for (int i = threadIdx.x; i < count; i += 32) shared.drafts[i] = shared.whole[shared.at + i];
        count = expand(shared.drafts, count, most);
        if (threadIdx.x == 0) shared.num_drafts = count;
    }

#if HAS_RULES
    // ---- what the queries may write

    // The row's rules take in what was kept, write the limits of every query, and cut drafts that they forbid. By the
    // block.
    DEVICE void keep_rules(const RuleArguments& given, int number, int num_new) {
        SharedRules& rules = shared.rules;
        Limits* limits = given.limits + (i64)number * MAX_QUERIES;
        RuledRow& kept = given.rows[number];
        if (kept.state.phase == RULES_NONE) {
            if (threadIdx.x < MAX_QUERIES) limits[threadIdx.x].mode = Limits::ANYTHING;
            return;
        }
        copy_words(rules.row, kept);
        const int* ids_of_kinds = vocabulary.ids_of_kinds;
        RowRules<NUM_THREADS> row = {rules,
                                     given.ids,
                                     vocabulary.kinds,
                                     text,
                                     shared.drafts,
                                     length,
                                     ids_of_kinds[KIND_GO],
                                     ids_of_kinds[KIND_END],
                                     ids_of_kinds[KIND_EOS],
                                     given.runs + (i64)number * given.max_runs,
                                     given.codes + (i64)number * given.max_codes};
        row.push_all(length - num_new, num_new, false);
        if (threadIdx.x == 0) rules.states[0] = rules.row.state;
        for (int i = threadIdx.x; i < MOST_STEPS; i += NUM_THREADS) kept.bodies[i] = rules.row.bodies[i];
        copy_words(kept.state, rules.row.state);
        row.push_all(length, shared.num_drafts, true);
        row.write_limits(shared.num_drafts, limits);
        if (threadIdx.x == 0) shared.num_drafts = rules.num_allowed;
        __syncthreads();
    }

#endif
    // ---- what the queries see; by one thread

    // Account for what a query sees; false: the pass touches too many bodies.
    DEVICE bool add_query(int query, int report, bool is_dense) {
        const Track& track = shared.track;
        if (is_dense || (report & 7) != PHASE_BODY) {
            shared.sees_all |= 1u << query;
            return true;
        }
        int body = 0;
        while (body < shared.num_contexts && shared.own_start[body] != track.step_start) body++;
        if (body == MAX_CONTEXTS) return false;
        if (body == shared.num_contexts) {
            shared.own_start[body] = track.step_start;
            shared.num_context[body] = track.num_context;
            for (int i = 0; i < track.num_context; i++) shared.contexts[body][i] = track.context[i];
            shared.sees[body] = 0;
            shared.num_contexts++;
        }
        shared.sees[body] |= 1u << query;
        return true;
    }

    // What the tracker would say of the drafts, which are cut where one cannot be verified in this pass. The tracker is
    // as before. Their kinds lie in `kinds`.
    DEVICE void preview(int position, bool is_dense) {
        Track& track = shared.track;
        int given[MAX_QUERIES], num_given = 0, query = 0;
        shared.sees_all = shared.num_contexts = 0;
        add_query(0, shared.report, is_dense);
        shared.saved = track;
        for (; query < shared.num_drafts; query++) {
            int phase = track.phase, kind = shared.kinds[query], report = tracker().push(kind);
            if (has_closed(phase, kind, report)) given[num_given++] = track.name;
            bool is_body = (report & 7) == PHASE_BODY;
            // What a body reads has to be in the cache before the pass.
            if (is_body && track.num_context > 0 && track.context[track.num_context - 1].end > position) break;
            if (!add_query(query + 1, report, is_dense)) break;
        }
        track = shared.saved;
        shared.num_drafts = query;
        while (num_given > 0) shared.segments[given[--num_given]] = make_int2(0, 0);
    }

    // The table of all queries: intervals up to `end`, each with the queries that see it. By the block.
    DEVICE void write_table(int end, int2* intervals, int* masks, int* count) {
        int thread = threadIdx.x, num_edges = 0;
        auto edge = [&](int at) {
            if (thread == num_edges++) shared.edges[thread] = min(at, end);
        };
        edge(end);
        if (shared.sees_all) edge(0);
        for (int body = 0; body < shared.num_contexts; body++) {
            edge(shared.own_start[body]);
            for (int i = 0; i < shared.num_context[body]; i++) {
                edge(shared.contexts[body][i].start);
                edge(shared.contexts[body][i].end);
            }
        }
        __syncthreads();
        if (thread < num_edges) {
            int mine = shared.edges[thread], place = 0;
            for (int i = 0; i < num_edges; i++) {
                int other = shared.edges[i];
                place += other < mine || (other == mine && i < thread);
            }
            shared.sorted[place] = mine;
        }
        __syncthreads();
        if (thread < num_edges) shared.segment_masks[thread] = queries_that_see(shared.sorted[thread]);
        __syncthreads();
        if (thread > 0) return;
        int num = 0;
        u32 last_mask = 0;
        int2 last = make_int2(0, 0);
        for (int i = 0; i + 1 < num_edges; i++) {
            int2 one = make_int2(shared.sorted[i], shared.sorted[i + 1]);
            u32 mask = shared.segment_masks[i];
            if (one.x == one.y || mask == 0) continue;
            if (num > 0 && last.y == one.x && last_mask == mask) {
                last.y = one.y;
            } else {
                last = one, last_mask = mask;
                masks[num++] = (int)mask;
            }
            intervals[num - 1] = last;
        }
        *count = num;
    }

    DEVICE u32 queries_that_see(int position) const {
        u32 mask = shared.sees_all;
        for (int body = 0; body < shared.num_contexts; body++) {
            bool is_seen = position >= shared.own_start[body];
            for (int i = 0; i < shared.num_context[body]; i++) {
                Interval one = shared.contexts[body][i];
                is_seen |= one.start <= position && position < one.end;
            }
            if (is_seen) mask |= shared.sees[body];
        }
        return mask;
    }
};

// One round of every row. Of row `r`:
//   pending: int32 [batch, MAX_QUERIES] with num_pending: int32 [batch] ids that were kept and that the tracker has not
//     seen; kinds: int16 [vocab_size]; ids_of_kinds: int32 [NUM_ANCHORS + 5]; tracks, segments, orders: its state;
//   texts: int32 [batch, text_length], its prompt and answer; limits: int32 [batch], positions that it may take;
//   injected: int32 [batch, MAX_QUERIES - 1], drafts up to the first negative one, or OWN_DRAFTS in the first place.
// Written: ids: int64 [batch, num_queries], the last id and its drafts; positions: int32, the same shape, -1 where
// there is no token; first_positions, num_drafts, counts: int32 [batch]; intervals: int32 [batch, max_spans, 2] and
// masks: int32 [batch, max_spans], as the plan kernel takes them; max_spans is NUM_EDGES or more. The rest: see struct
// RuleArguments; the rules' rows and limits are written.
extern "C" __global__ void __launch_bounds__(NUM_THREADS)
    selfspan_draft(const int* pending, const int* num_pending, const short* kinds, const int* ids_of_kinds,
                   int vocab_size, Track* tracks, int2* segments, ReadingOrder* orders, const int* texts,
                   int text_length, const int* limits, const int* injected, int num_queries, int is_dense, i64* ids,
                   int* positions, int* first_positions, int* num_drafts, int2* intervals, int* masks, int max_spans,
                   int* counts
#if HAS_RULES
                   ,
                   RuledRow* rule_rows, const unsigned char* classes, const int* id_starts,
                   const unsigned char* id_text, const int* characters, const Run* runs, const int* codes,
                   Limits* rule_limits, int max_runs, int max_codes
#endif
    ) {
    __shared__ SharedStorage shared;
    launch_dependents();
    wait_for_prior_grids();
    int number = blockIdx.x, thread = threadIdx.x;
    ids += (i64)number * num_queries;
    positions += number * num_queries;
    if (tracks[number].phase == PHASE_IDLE) {
        if (thread < num_queries) ids[thread] = 0, positions[thread] = -1;
        if (thread == 0) first_positions[number] = num_drafts[number] = counts[number] = 0;
        return;
    }
    segments += (i64)number * NUM_ANCHORS;
    copy_words(shared.track, tracks[number]);
    copy_words(shared.order, orders[number]);
    for (int i = thread; i < NUM_ANCHORS; i += NUM_THREADS) shared.segments[i] = segments[i];
    int num_new = num_pending[number], position = tracks[number].position + num_new;
    if (thread < num_new) shared.kinds[thread] = kinds[pending[number * MAX_QUERIES + thread]];
    if (thread == 0) shared.is_changed = false;
    __syncthreads();
    Vocabulary vocabulary = {kinds, ids_of_kinds, vocab_size};
    DraftedRow row = {shared, vocabulary, texts + (i64)number * text_length, position + 1};
    if (thread == 0)
        for (int i = 0; i < num_new; i++) row.push(shared.kinds[i]);
    __syncthreads();
    copy_words(shared.after, static_cast<const LiveSegments&>(shared.order));
    if (thread == 0) shared.num_drafts = 0;
    __syncthreads();
    int most = min(num_queries - 1, limits[number] - position - 1);
    const int* given = injected + number * (MAX_QUERIES - 1);
    if (most > 0 && given[0] == OWN_DRAFTS) {
        row.propose(most);
    } else if (most > 0 && thread < 32) {
        int token = thread < most ? given[thread] : -1;
        u32 unfit = __ballot_sync(FULL_WARP, token < 0 || token >= vocab_size);
        if (thread < most) shared.drafts[thread] = token;
        if (thread == 0) shared.num_drafts = unfit ? min(most, __ffs(unfit) - 1) : most;
    }
    __syncthreads();
#if HAS_RULES
    RuleArguments rules = {rule_rows, {classes, id_starts, id_text, characters}, runs, codes, rule_limits, max_runs,
                           max_codes};
    row.keep_rules(rules, number, num_new);
#endif
    if (thread < shared.num_drafts) shared.kinds[thread] = kinds[shared.drafts[thread]];
    __syncthreads();
    if (thread == 0) row.preview(position, is_dense);
    __syncthreads();
    int num_kept = shared.num_drafts;
    if (thread < num_queries) {
        bool is_query = thread <= num_kept;
        ids[thread] = thread == 0 ? row.text[position] : is_query ? shared.drafts[thread - 1] : 0;
        positions[thread] = is_query ? position + thread : -1;
    }
    if (thread == 0) first_positions[number] = position, num_drafts[number] = num_kept;
    row.write_table(position + num_kept + 1, intervals + (i64)number * max_spans, masks + number * max_spans,
                    counts + number);
    copy_words(tracks[number], shared.track);
    if (!shared.is_changed) return;
    copy_words(orders[number], shared.order);
    for (int i = thread; i < NUM_ANCHORS; i += NUM_THREADS) segments[i] = shared.segments[i];
}

// Keeps the drafts that are what was drawn, and the first id that is not: these are the row's next ids. A row at its
// end becomes idle. One thread per row.
//
// drawn: int64 [batch, num_queries], behind every query; ids, first_positions, num_drafts: of `selfspan_draft`;
// scripts: int32 [batch, script_length], ids that a row has to take at a position instead of the drawn one, or -1.
// ring: int64 [num_slots, batch, ring_width]: slot `step` % num_slots is written: the ids, -1 behind them, and in the
// last place the number of drafts; the host may read it while later steps run. step: int32 [1], is incremented.
extern "C" __global__ void selfspan_accept(const i64* drawn, const i64* ids, const int* first_positions,
                                           const int* num_drafts, int num_queries, const short* kinds, Track* tracks,
                                           const int* scripts, int script_length, const int* limits, int batch,
                                           int* texts, int text_length, int* pending, int* num_pending, i64* ring,
                                           int num_slots, int ring_width, int* step) {
    launch_dependents();
    wait_for_prior_grids();
    // Unsigned: it may wrap around.
    int slot = (int)((u32)*step % (u32)num_slots);
    __syncthreads();
    for (int row = threadIdx.x; row < batch; row += blockDim.x) {
        i64* written = ring + ((i64)slot * batch + row) * ring_width;
        for (int i = 0; i + 1 < ring_width; i++) written[i] = -1;
        bool is_idle = tracks[row].phase == PHASE_IDLE;
        written[ring_width - 1] = is_idle ? 0 : num_drafts[row];
        if (is_idle) continue;
        int kept = 0;
        for (bool goes_on = true; goes_on; kept++) {
            int next = first_positions[row] + 1 + kept;
            i64 token = drawn[row * num_queries + kept];
            int given = next < script_length ? scripts[(i64)row * script_length + next] : -1;
            if (given >= 0) token = given;
            written[kept] = token;
            pending[row * MAX_QUERIES + kept] = (int)token;
            if (next < text_length) texts[(i64)row * text_length + next] = (int)token;
            bool is_over = kinds[token] == KIND_EOS || next >= limits[row];
            if (is_over) tracks[row].phase = PHASE_IDLE;
            goes_on = !is_over && kept < num_drafts[row] && ids[row * num_queries + kept + 1] == token;
        }
        num_pending[row] = kept;
    }
    if (threadIdx.x == 0) *step = (int)((u32)*step + 1);
}
