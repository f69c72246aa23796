// Decode attention over exactly the tokens that a row's intervals name: one to 16 query tokens per row, any grouping of
// heads. Several queries of a row read every token once for all of them, and each gives weight to those it sees.
//
// A persistent grid: as many blocks as run at the same time, and one work range of the schedule (schedule.cuh) per
// warp. A warp streams the tiles of its range through registers (tile.cuh), with the loads of the next tile in flight.
// A row-head that lies in one range is written at once. Otherwise its splits are merged in the block and, where a
// row-head spans blocks, by the last of these blocks to finish; always in the same order, so that the same input gives
// the same bits. (Values have to be finite: empty places of a tile get weight 0, and 0 times infinity is NaN.)
//
// Macros: HEAD_DIM (64, 96, 128), GROUP (query heads per key/value head, 1 to 16), IS_BF16 (otherwise fp16), NUM_WARPS,
// NUM_QUERIES (of a row, 1 to 16).
#include <schedule.cuh>
#include <partial.cuh>

constexpr int NUM_THREADS = 32 * NUM_WARPS;
constexpr int NUM_SLOTS = 2 * NUM_WARPS;
constexpr int SLOTS_PER_WARP_IN_SHARED = IS_WIDE ? 1 : 2;
// Eight warps have 64 KiB of loads in flight. With twelve, multiprocessors share memory less evenly and are 1-2 %
// slower.
constexpr int WARPS_PER_SM = 8;
constexpr int BLOCKS_PER_SM = WARPS_PER_SM < NUM_WARPS ? 1 : WARPS_PER_SM / NUM_WARPS;

// A tensor with one vector per row, query and head. Where rows have one query, its stride is none.
struct HeadVectors {
    u16* data;
    i64 row_stride, head_stride, query_stride;
    DEVICE u16* at(int row, int query, int head) const {
        return data + row * row_stride + (IS_MASKED ? query * query_stride : 0) + head * head_stride;
    }
};

// Keys or values of one layer.
struct Cache {
    const u16* data;
    i64 row_stride, head_stride, token_stride;
    DEVICE const u16* at(int row, int head) const { return data + row * row_stride + head * head_stride; }
};

// The arguments of a launch.
struct Params {
    HeadVectors queries, out;
    float* lse;  // [batch, NUM_QUERIES, num_kv_heads * GROUP] or null
    Cache keys, values;
    const Span* spans;  // [batch, max_spans]
    int max_spans;
    float scale;  // includes log2(e)
    // Of every column block:
    float* partials;  // [num_row_heads] first splits, then [num_blocks] later splits; behind them all, where slots have
                      // no room in shared memory, one per warp of the grid
    int* arrived;     // [num_row_heads] splits that are done, where blocks share a row-head; 0 between launches
};

// Describes a slot of a warp: the row-head of its split, and the blocks that hold the other splits. Row and head are
// packed into one number; NO_ROW_HEAD marks an empty slot.
struct Slot {
    int row_head;
    BlockRange blocks;
    union {
        int is_last;   // of a pending row-head, set when the split is counted: it was the last one to finish
        int is_apart;  // of a warp's slot: its partial result lies in global memory
    };
    DEVICE int row() const { return row_head >> 16; }
    DEVICE int head() const { return row_head & 0xffff; }
};
constexpr int NO_ROW_HEAD = -1;

// Shared memory of a block; the rows' part of the schedule lies behind it.
struct SharedStorage {
    float partials[NUM_WARPS * SLOTS_PER_WARP_IN_SHARED * PARTIAL_FLOATS];
    // Two slots per warp: of a row-head that began before the warp's range, and of one that continues behind it. Where
    // there is room for one partial result only, it is that of the warp's last row-head, and until then holds what the
    // warp has no registers for; that of an earlier row-head lies in global memory.
    Slot slots[NUM_SLOTS];
    // Row-heads shared with other blocks: one began before the block, one continues behind.
    Slot pending[2];
    Schedule schedule;  // kept here, it takes up no registers
};

DEVICE void copy_schedule(Schedule& schedule, const int* words, int batch) {
    for (int i = threadIdx.x; i < Schedule::num_words(batch); i += NUM_THREADS)
        reinterpret_cast<int*>(&schedule)[i] = words[i];
}

// The first lines of the interval table are fetched while the schedule is being copied.
DEVICE void prefetch_table(const Params& params, int batch) {
    constexpr int SPANS_PER_LINE = 128 / sizeof(Span), MAX_LINES = 2048;
    int cache_line = blockIdx.x * NUM_THREADS + threadIdx.x;
    if (cache_line < min(MAX_LINES, batch * params.max_spans / SPANS_PER_LINE))
        prefetch(params.spans + cache_line * SPANS_PER_LINE);
}

DEVICE float minus_infinity() {
    return -__int_as_float(0x7f800000);
}

// Whether a query sees none of the tokens that its row's other queries see: it gives zeros, and a log-sum-exp of minus
// infinity. (All its weights are 1 then, those of hidden tokens, until a score that is seen makes them 0.)
DEVICE bool sees_nothing(float max_score) {
    return IS_MASKED && max_score == MIN_SCORE;
}

// The natural logarithm of the sum of exponentials, if the caller wants it. Scores are in base 2.
DEVICE void write_lse(const Params& params, int row, int query, int head, int num_kv_heads, float max_score,
                      float exp_sum) {
    constexpr float LN_2 = 0.6931471805599453f;
    if (!params.lse) return;
    float lse = sees_nothing(max_score) ? minus_infinity() : (max_score + log2_fast(exp_sum)) * LN_2;
    params.lse[((i64)row * NUM_QUERIES + query) * num_kv_heads * GROUP + head] = lse;
}

// What a warp keeps in the memory of its slot until it has a partial result.
static_assert(!IS_WIDE || 512 * (SharedQueries::VECTORS + COLUMN_TILES) <= 4 * PARTIAL_FLOATS, "there is no room");

// Online softmax (arXiv 1805.02867) of one row-head's columns over a split of its tokens, in the registers of a warp.
struct OnlineSoftmax {
    Accumulators acc;
    float max_score[COLUMN_TILES][2];  // of columns 2 * lane.column() and + 1, the same in all rows
    float exp_sum[COLUMN_TILES][2];    // this lane's tokens only, until `reduce_exp_sum`

    // Of many columns, maximum and sum wait in shared memory between tiles of tokens: every lane has its own copy.
    float4* waiting;  // this lane's of each tile of columns, every 32nd

    DEVICE void fetch(int tile) {
        if (!IS_WIDE) return;
        float4 x = waiting[32 * tile];
        max_score[tile][0] = x.x, max_score[tile][1] = x.y;
        exp_sum[tile][0] = x.z, exp_sum[tile][1] = x.w;
    }
    DEVICE void leave(int tile) {
        if (IS_WIDE)
            waiting[32 * tile] =
                make_float4(max_score[tile][0], max_score[tile][1], exp_sum[tile][0], exp_sum[tile][1]);
    }

    DEVICE void clear() {
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
#pragma unroll
            for (int m = 0; m < ACC_TILES; m++)
                acc[tile][m][0] = acc[tile][m][1] = acc[tile][m][2] = acc[tile][m][3] = 0.f;
            max_score[tile][0] = max_score[tile][1] = MIN_SCORE;
            exp_sum[tile][0] = exp_sum[tile][1] = 0.f;
            leave(tile);
        }
    }

    // Whether the queries see the entries of this lane's scores, as bits: entry_of_row(lane.row(), half) of a sub-tile.
    // seen_by: with several queries, the bits of those that see tile entry `lane % TILE_TOKENS`, none behind the last.
    struct Seen {
        u32 bits[SUB_TILES][2];

        DEVICE void gather(u32 seen_by, Lane lane) {
            if (!IS_MASKED) return;
#pragma unroll
            for (int sub = 0; sub < SUB_TILES; sub++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    bits[sub][half] = __shfl_sync(FULL_WARP, seen_by, 16 * sub + entry_of_row(lane.row(), half));
        }
    };

    // A score in base 2; one that does not count is the lowest.
    static DEVICE float masked(const Scores& scores, int sub, int tile, int i, int num_valid, const Seen& seen,
                               float scale, Lane lane) {
        bool valid = IS_MASKED ? seen.bits[sub][i / 2] >> query_of(8 * tile + 2 * lane.column() + i % 2) & 1
                               : 16 * sub + entry_of_row(lane.row(), i / 2) < num_valid;
        return valid ? scores[sub][tile][i] * scale : MIN_SCORE;
    }

    static DEVICE void mask(Scores& scores, u32 seen_by, float scale, Lane lane) {
        Seen seen;
        seen.gather(seen_by, lane);
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
            for (int sub = 0; sub < SUB_TILES; sub++)
#pragma unroll
                for (int i = 0; i < 4; i++) scores[sub][tile][i] = masked(scores, sub, tile, i, 0, seen, scale, lane);
    }

    // Scores of one tile of columns become exponentials relative to the running maximum; earlier sums are rescaled to
    // the new maximum.
    DEVICE void update(Scores& scores, int tile, int num_valid, const Seen& seen, float scale, Lane lane) {
        float new_max[2] = {MIN_SCORE, MIN_SCORE};
#pragma unroll
        for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& s = scores[sub][tile][i];
                if (!IS_WIDE) s = masked(scores, sub, tile, i, num_valid, seen, scale, lane);
                new_max[i % 2] = fmaxf(new_max[i % 2], s);
            }
        }
        float rescale[2];
        fetch(tile);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            for (int step = 4; step < 32; step *= 2)
                new_max[h] = fmaxf(new_max[h], __shfl_xor_sync(FULL_WARP, new_max[h], step));
            new_max[h] = fmaxf(new_max[h], max_score[tile][h]);
            rescale[h] = exp2_fast(max_score[tile][h] - new_max[h]);
            max_score[tile][h] = new_max[h];
            exp_sum[tile][h] *= rescale[h];
        }
#pragma unroll
        for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& s = scores[sub][tile][i];
                s = exp2_fast(s - new_max[i % 2]);
                exp_sum[tile][i % 2] += s;
            }
        }
        leave(tile);
#pragma unroll
        for (int m = 0; m < ACC_TILES; m++) {
            acc[tile][m][0] *= rescale[0];
            acc[tile][m][1] *= rescale[1];
            acc[tile][m][2] *= rescale[0];
            acc[tile][m][3] *= rescale[1];
        }
    }

    DEVICE void accumulate_values(const Scores& weights, const ValueFragment& values, int sub, int tile) {
        const float (&w)[4] = weights[sub][tile];
        u32 weights0 = transpose_8x8(pack(w[0], w[1])), weights1 = transpose_8x8(pack(w[2], w[3]));
        mma_values(acc[tile], values, sub, weights0, weights1);
    }

    // Takes in a tile's scores (of many columns, already masked) and values.
    DEVICE void add(Scores& scores, const ValueFragment& values, int num_valid, u32 seen_by, float scale, Lane lane) {
        Seen seen;
        if (!IS_WIDE) seen.gather(seen_by, lane);
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
            update(scores, tile, num_valid, seen, scale, lane);
#pragma unroll
            for (int sub = 0; sub < SUB_TILES; sub++)
                if (IS_WIDE) accumulate_values(scores, values, sub, tile);
        }
#pragma unroll
        for (int sub = 0; sub < SUB_TILES; sub++)
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; tile++)
                if (!IS_WIDE) accumulate_values(scores, values, sub, tile);
    }

    // Sums the lanes' exponentials: afterwards every lane has the sum over all tokens.
    DEVICE void reduce_exp_sum() {
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
            fetch(tile);
#pragma unroll
            for (int h = 0; h < 2; h++)
                for (int step = 4; step < 32; step *= 2)
                    exp_sum[tile][h] += __shfl_xor_sync(FULL_WARP, exp_sum[tile][h], step);
        }
    }

    DEVICE void store(float* partial, Lane lane) const {
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int column = 8 * tile + 2 * lane.column() + h;
                if (column >= COLUMNS) continue;
                float* at = partial + column * COLUMN_FLOATS;
                auto sum = [&](int m, int half) { return acc[tile][m][2 * half + h]; };
#pragma unroll
                for (int m = 0; m < 4 * CHUNKS; m += 4) {
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        *reinterpret_cast<float4*>(at + dimension_of(m, half, lane)) =
                            make_float4(sum(m, half), sum(m + 1, half), sum(m + 2, half), sum(m + 3, half));
                }
                if (HAS_HALF_CHUNK) {
                    constexpr int m = 4 * CHUNKS;
                    *reinterpret_cast<float4*>(at + dimension_of(m, 0, lane)) =
                        make_float4(sum(m, 0), sum(m + 1, 0), sum(m, 1), sum(m + 1, 1));
                }
                if (lane.row() == 0)
                    *reinterpret_cast<float2*>(at + HEAD_DIM) = make_float2(max_score[tile][h], exp_sum[tile][h]);
            }
        }
    }

    DEVICE void write(const Params& params, int row, int kv_head, int num_kv_heads, Lane lane) const {
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int column = 8 * tile + 2 * lane.column() + h;
                if (!is_query(column)) continue;
                int query = first_query() + query_of(column), head = kv_head * GROUP + head_of(column);
                float inverse = sees_nothing(max_score[tile][h]) ? 0.f : 1.f / exp_sum[tile][h];
                u16* out = params.out.at(row, query, head);
                auto sum = [&](int m, int half) { return acc[tile][m][2 * half + h] * inverse; };
#pragma unroll
                for (int p = 0; p < CHUNKS; p++) {
                    int m = 4 * p;
                    uint4 x = make_uint4(pack(sum(m, 0), sum(m + 1, 0)), pack(sum(m + 2, 0), sum(m + 3, 0)),
                                         pack(sum(m, 1), sum(m + 1, 1)), pack(sum(m + 2, 1), sum(m + 3, 1)));
                    *reinterpret_cast<uint4*>(out + dimension_of(m, 0, lane)) = x;
                }
                if (HAS_HALF_CHUNK) {
                    int m = 4 * CHUNKS;
                    uint2 x = make_uint2(pack(sum(m, 0), sum(m + 1, 0)), pack(sum(m, 1), sum(m + 1, 1)));
                    *reinterpret_cast<uint2*>(out + dimension_of(m, 0, lane)) = x;
                }
                if (lane.row() == 0)
                    write_lse(params, row, query, head, num_kv_heads, max_score[tile][h], exp_sum[tile][h]);
            }
        }
    }
};

// Entries [first, last) of the visible list of one row-head, or every `step`-th tile of them. Loads of a tile are
// issued while the tile before is computed: up to a tile of keys and values per warp is in flight. `overlapped` runs
// while the first tile is loaded. The entries' addresses do not depend on the kernel before; their contents may.
template <class Overlapped>
DEVICE void attend(OnlineSoftmax& softmax, const Params& params, int row, int kv_head, int num_spans, int first,
                   int last, int step, float* own_memory, Lane lane, Overlapped overlapped) {
    const u16* keys = params.keys.at(row, kv_head);
    const u16* values = params.values.at(row, kv_head);
    // Places behind the last entry load the last entry again, and get weight 0.
    int entry = first + lane.index % TILE_TOKENS;
    Cursor cursor;
    cursor.seek(params.spans + (i64)row * params.max_spans, num_spans, first, min(entry, last - 1), lane.index);
    int position = cursor.position(min(entry, last - 1));
    auto seen_by_queries = [&] { return IS_MASKED && entry < last ? cursor.seen_by(position) >> first_query() : 0u; };
    u32 seen_by = seen_by_queries();
    wait_for_prior_grids();
    Queries queries(own_memory, lane);
    const u16* group = params.queries.at(row, 0, kv_head * GROUP);
    queries.load(
        [&](int column) {
            // Queries that there are not load the last one.
            int query = min(first_query() + query_of(column), NUM_QUERIES - 1);
            return group + (IS_MASKED ? query * params.queries.query_stride : 0) +
                   head_of(column) * params.queries.head_stride;
        },
        again(lane));
    KeyFragment key_tile;
    ValueFragment value_tile;
    key_tile.load(keys, params.keys.token_stride, position, lane);
    value_tile.load(values, params.values.token_stride, position, lane);
    softmax.waiting = reinterpret_cast<float4*>(own_memory) + 32 * SharedQueries::VECTORS + lane.index;
    softmax.clear();
    overlapped();
    for (int tile = first; tile < last; tile += step * TILE_TOKENS) {
        bool more = tile + step * TILE_TOKENS < last;
        u32 tile_seen_by = seen_by;
        Scores scores;
        auto advance = [&] {
            entry = IS_WIDE ? tile + step * TILE_TOKENS + again(lane).index % TILE_TOKENS : entry + step * TILE_TOKENS;
            if (!more) return;
            position = cursor.position(min(entry, last - 1));
            seen_by = seen_by_queries();
        };
        if (!IS_WIDE) advance();
        compute_scores(scores, key_tile, queries, again(lane));
        if (IS_WIDE) {
            softmax.mask(scores, tile_seen_by, params.scale, again(lane));
            advance();
        }
        if (more) key_tile.load(keys, params.keys.token_stride, position, again(lane));
        softmax.add(scores, value_tile, last - tile, tile_seen_by, params.scale, lane);
        if (more) value_tile.load(values, params.values.token_stride, position, again(lane));
    }
    softmax.reduce_exp_sum();
    // Now the warp's memory takes a partial result: no lane needs its queries any more.
    if (IS_WIDE) __syncwarp();
}

// The output of one column of a row-head.
DEVICE void write_column(const Params& params, const Merged& merged, const Slot& slot, int column, int num_kv_heads,
                         Lane lane) {
    if (!is_query(column)) return;
    int row = slot.row(), query = first_query() + query_of(column), head = slot.head() * GROUP + head_of(column);
    float inverse = sees_nothing(merged.max_score) ? 0.f : 1.f / merged.exp_sum;
    uint2 x = make_uint2(pack(merged.sum.x * inverse, merged.sum.y * inverse),
                         pack(merged.sum.z * inverse, merged.sum.w * inverse));
    if (lane.index < QUADS_PER_COLUMN) reinterpret_cast<uint2*>(params.out.at(row, query, head))[lane.index] = x;
    if (lane.index == 0) write_lse(params, row, query, head, num_kv_heads, merged.max_score, merged.exp_sum);
}

// A partial result in global memory, of this block's column block: of `num_row_heads` first splits, then of one later
// split per work block.
DEVICE float* partial_at(const Params& params, const Schedule& schedule, i64 index) {
    i64 of_column_block = (i64)column_block() * (schedule.num_row_heads() + schedule.num_blocks);
    return params.partials + (of_column_block + index) * PARTIAL_FLOATS;
}

// The partial result of a slot that has no room in shared memory.
DEVICE float* partial_apart(const Params& params, const Schedule& schedule, int warp) {
    i64 merged = (i64)COLUMN_BLOCKS * (schedule.num_row_heads() + schedule.num_blocks);
    return params.partials + (merged + (i64)blockIdx.x * NUM_WARPS + warp) * PARTIAL_FLOATS;
}

// Where this block leaves its split of a row-head that it shares with other blocks.
DEVICE float* partial_of(const Params& params, const Schedule& schedule, const Slot& slot) {
    int row_head = slot.row() * schedule.num_kv_heads + slot.head();
    int block = work_block();
    return partial_at(params, schedule, block == slot.blocks.first ? row_head : schedule.num_row_heads() + block);
}

// Counts this block's split of a shared row-head; returns whether it was the last one. One thread does it for all
// threads whose stores it has seen at a barrier: its fence covers them.
DEVICE bool is_last_split(const Params& params, const Schedule& schedule, const Slot& slot) {
    int* counter =
        params.arrived + slot.row() * schedule.num_kv_heads + slot.head() + column_block() * schedule.num_row_heads();
    fence_device();
    if (atomicAdd(counter, 1) != slot.blocks.last - slot.blocks.first) return false;
    fence_device();
    *counter = 0;
    return true;
}

// One column's partial results of a row-head, 32 at a time from `split` on: of all blocks, or of a run of slots.
DEVICE Partials partials_of_blocks(const Params& params, const Schedule& schedule, const Slot& slot, int split,
                                   int column) {
    i64 first = split == 0 ? slot.row() * schedule.num_kv_heads + slot.head()
                           : schedule.num_row_heads() + slot.blocks.first + split;
    i64 base = schedule.num_row_heads() + slot.blocks.first + split;
    int num_splits = slot.blocks.last - slot.blocks.first + 1;
    const float* partials = partial_at(params, schedule, 0) + column * COLUMN_FLOATS;
    return {partials + first * PARTIAL_FLOATS, partials + base * PARTIAL_FLOATS,
            FULL_WARP >> max(0, 32 - (num_splits - split))};
}
DEVICE Partials partials_in_slots(const Params& params, const SharedStorage& shared, u32 run, int column, Lane lane) {
    if (IS_WIDE) {
        // A warp has at most one slot in a run. Only the last one may lie apart: it comes first.
        u32 warps = __ballot_sync(FULL_WARP, lane.index < NUM_WARPS && (run >> 2 * lane.index & 3) != 0);
        int first = __ffs(warps) - 1, last = 31 - __clz(warps), at = column * COLUMN_FLOATS;
        const float* last_partial = shared.slots[31 - __clz(run)].is_apart
                                        ? partial_apart(params, shared.schedule, last)
                                        : shared.partials + last * PARTIAL_FLOATS;
        return {last_partial + at, shared.partials + (first - 1) * PARTIAL_FLOATS + at,
                (warps & ~(1u << last)) >> first << 1 | 1};
    }
    int first = __ffs(run) - 1;
    const float* partials = shared.partials + first * PARTIAL_FLOATS + column * COLUMN_FLOATS;
    return {partials, partials, run >> first};
}

// A warp's range, row-head by row-head. A whole row-head is written to the output; a split goes to one of the warp's
// slots.
DEVICE void attend_range(const Params& params, SharedStorage& shared, int warp, Lane lane) {
    const Schedule& schedule = shared.schedule;
    Slot* slots = shared.slots + 2 * warp;
    float* own_memory = shared.partials + warp * SLOTS_PER_WARP_IN_SHARED * PARTIAL_FLOATS;
    if (lane.index < 2) slots[lane.index].row_head = NO_ROW_HEAD;
    __syncwarp();
    WorkRange range = schedule.range_of_warp(work_block() * NUM_WARPS + warp);
    WorkTile at = range.from;
    int remaining = uniform(range.length), step = uniform(range.step);
    while (remaining > 0) {
        at = {uniform(at.row), uniform(at.head), uniform(at.tile)};
        int visible = uniform(schedule.num_visible(at.row));
        int first = at.tile * TILE_TOKENS, last = min(visible, first + remaining * TILE_TOKENS);
        if (first < last) {
            bool is_whole = first == 0 && last == visible && step == 1;
            int slot = first == 0;
            bool is_apart = IS_WIDE && remaining > Schedule::work_length(visible) - at.tile;
            auto label = [&] {
                if (!is_whole && lane.index == 0)
                    slots[slot] = {at.row << 16 | at.head, schedule.blocks_of(at.row, at.head), {is_apart}};
            };
            OnlineSoftmax softmax;
            attend(softmax, params, at.row, at.head, schedule.num_spans(at.row), first, last, step, own_memory, lane,
                   label);
            if (is_whole)
                softmax.write(params, at.row, at.head, schedule.num_kv_heads, again(lane));
            else if (!IS_WIDE)
                softmax.store(shared.partials + (2 * warp + slot) * PARTIAL_FLOATS, lane);
            else
                softmax.store(is_apart ? partial_apart(params, schedule, warp) : own_memory, again(lane));
        }
        remaining -= Schedule::work_length(visible) - at.tile;
        if (remaining > 0) at = schedule.next_row_head(at);
    }
}

// The block's slots in use, as bits. Slots of one row-head are neighbours: a run.
struct Runs {
    u32 used, firsts;

    DEVICE Runs(const SharedStorage& shared, Lane lane) {
        int row_head = lane.index < NUM_SLOTS ? shared.slots[lane.index].row_head : NO_ROW_HEAD;
        used = __ballot_sync(FULL_WARP, row_head != NO_ROW_HEAD);
        u32 below = used & ((1u << lane.index) - 1);
        int row_head_below = __shfl_sync(FULL_WARP, row_head, below ? 31 - __clz(below) : lane.index);
        firsts = __ballot_sync(FULL_WARP, row_head != NO_ROW_HEAD && (below == 0 || row_head_below != row_head));
    }

    DEVICE u32 run(int number) const {
        u32 from = firsts;
        for (; number > 0; number--) from &= from - 1;
        u32 next = from & (from - 1);
        from &= -from;
        u32 behind = next & -next;  // 0 if there is no next run: then all bits from `from` on
        return used & (behind - from);
    }
};

// One step of `merge`; each warp takes one column of one row-head. First the runs of slots: a row-head that is complete
// is written; of any other, the partial result goes to global memory and the row-head becomes pending. Then the pending
// row-heads of which this block finished last.
DEVICE void merge_step(const Params& params, SharedStorage& shared, const Runs& runs, bool across_blocks, int warp,
                       Lane lane) {
    const Schedule& schedule = shared.schedule;
    int num_row_heads = across_blocks ? 2 : __popc(runs.firsts);
    for (int item = warp; item < num_row_heads * COLUMNS; item += NUM_WARPS) {
        int number = item / COLUMNS, column = item % COLUMNS;
        u32 run = across_blocks ? 0 : runs.run(number);
        const Slot& slot = across_blocks ? shared.pending[number] : shared.slots[__ffs(run) - 1];
        if (across_blocks && (slot.row_head == NO_ROW_HEAD || !slot.is_last)) continue;
        Merged merged;
        int num_splits = across_blocks ? slot.blocks.last - slot.blocks.first + 1 : 1;
        for (int split = 0; split < num_splits; split += 32)
            merged.add(across_blocks ? partials_of_blocks(params, schedule, slot, split, column)
                                     : partials_in_slots(params, shared, run, column, lane),
                       lane.index);
        if (across_blocks || slot.blocks.first == slot.blocks.last) {
            write_column(params, merged, slot, column, schedule.num_kv_heads, lane);
        } else {
            merged.store(partial_of(params, schedule, slot) + column * COLUMN_FLOATS, lane.index);
            if (column == 0 && lane.index == 0) shared.pending[slot.blocks.first == work_block()] = slot;
        }
    }
}

// Merges the splits that the block's warps left. One loop instead of two calls: its code is fetched from memory once.
DEVICE void merge(const Params& params, SharedStorage& shared, int warp) {
    Lane lane;
    if (warp == 0 && lane.index < 2) shared.pending[lane.index].row_head = NO_ROW_HEAD;
    __syncthreads();
    Runs runs(shared, lane);
#pragma unroll 1
    for (int step = 0; step < 2; step++) {
        merge_step(params, shared, runs, step == 1, warp, lane);
        // Whole row-heads never span blocks.
        if (step == 1 || shared.schedule.whole.warps_per_row_head) return;
        __syncthreads();
        if (warp == 0 && lane.index < 2 && shared.pending[lane.index].row_head != NO_ROW_HEAD)
            shared.pending[lane.index].is_last = is_last_split(params, shared.schedule, shared.pending[lane.index]);
        __syncthreads();
    }
}

// Rows that see nothing (padding) give zeros, and a log-sum-exp of minus infinity.
DEVICE void write_empty_rows(const Params& params, const Schedule& schedule) {
    int num_heads = schedule.num_kv_heads * GROUP, num_vectors = NUM_QUERIES * num_heads;
    for (int row = blockIdx.x; row < schedule.batch; row += gridDim.x) {
        if (schedule.num_visible(row) != 0) continue;
        for (int i = threadIdx.x; i < num_vectors * HEAD_DIM / 8; i += NUM_THREADS) {
            int vector = i / (HEAD_DIM / 8), query = NUM_QUERIES == 1 ? 0 : vector / num_heads;
            u16* out = params.out.at(row, query, vector - query * num_heads) + i % (HEAD_DIM / 8) * 8;
            *reinterpret_cast<uint4*>(out) = make_uint4(0, 0, 0, 0);
        }
        for (int i = threadIdx.x; params.lse && i < num_vectors; i += NUM_THREADS)
            params.lse[(i64)row * num_vectors + i] = minus_infinity();
    }
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, BLOCKS_PER_SM)
    selfspan_attention(u16* queries, i64 query_row_stride, i64 query_head_stride,                               //
                       const u16* keys, i64 key_row_stride, i64 key_head_stride, i64 key_token_stride,          //
                       const u16* values, i64 value_row_stride, i64 value_head_stride, i64 value_token_stride,  //
                       u16* out, i64 out_row_stride, i64 out_head_stride, float* lse,                           //
                       const Span* spans, const int* schedule_words, int batch, int max_spans, float scale,
                       float* partials, int* arrived, int is_plan_done, i64 query_query_stride, i64 out_query_stride) {
    DYNAMIC_SHARED(memory);
    // The first launch after a plan kernel waits for it before it lets its own successor start.
    if (!is_plan_done) wait_for_prior_grids();
    launch_dependents();
    Params params = {{queries, query_row_stride, query_head_stride, query_query_stride},
                     {out, out_row_stride, out_head_stride, out_query_stride},
                     lse,
                     {keys, key_row_stride, key_head_stride, key_token_stride},
                     {values, value_row_stride, value_head_stride, value_token_stride},
                     spans,
                     max_spans,
                     scale,
                     partials,
                     arrived};
    SharedStorage& shared = *reinterpret_cast<SharedStorage*>(memory);
    int warp = uniform(threadIdx.x / 32);
    // In any other launch the plan is older than the previous kernel and therefore complete.
    copy_schedule(shared.schedule, schedule_words, batch);
    prefetch_table(params, batch);
    __syncthreads();
    attend_range(params, shared, warp, Lane());
    // Warps that had no work have not waited yet.
    wait_for_prior_grids();
    merge(params, shared, warp);
    write_empty_rows(params, shared.schedule);
}
