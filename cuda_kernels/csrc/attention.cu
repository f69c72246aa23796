// Decode attention over exactly the tokens that a row's intervals name: one query token per row, any head grouping.
//
// As many blocks as run at the same time, and one slice of the line of all (row, key/value head) units (schedule.cuh)
// per warp. A warp streams its tokens through registers (tile.cuh), with the next tile's loads in flight. A unit that
// lies in one slice is written at once; the parts of the others are merged in the block, and where a unit spans blocks,
// by whichever of them is done last, always in the same order: the same input gives the same bits. (Values are finite:
// a tile's empty places weigh nothing, and 0 times infinity is no number.)
//
// Injected: HEAD_DIM (64, 96, 128), GROUP (query heads per key/value head, 1 to 16), IS_BF16 (else fp16), NUM_WARPS.
#include <schedule.cuh>
#include <state.cuh>

constexpr int NUM_THREADS = 32 * NUM_WARPS;
constexpr int NUM_SLOTS = 2 * NUM_WARPS;
// Eight warps, 64 KiB on their way: multiprocessors read more equally then than with twelve, which are 1-2 % slower.
constexpr int WARPS_PER_SM = 8;
constexpr int BLOCKS_PER_SM = WARPS_PER_SM < NUM_WARPS ? 1 : WARPS_PER_SM / NUM_WARPS;

// A tensor of one vector per row and head.
struct Vectors {
    u16* data;
    i64 row_stride, head_stride;
    DEVICE u16* at(int row, int head) const { return data + row * row_stride + head * head_stride; }
};

// Keys or values.
struct Cache {
    const u16* data;
    i64 row_stride, head_stride, token_stride;
    DEVICE const u16* at(int row, int head) const { return data + row * row_stride + head * head_stride; }
};

// Everything that a launch is about.
struct Job {
    Vectors queries, out;
    float* lse;  // [batch, num_kv_heads * GROUP] or null
    Cache keys, values;
    const Span* spans;  // [batch, max_spans]
    int max_spans;
    float scale;    // times log2(e)
    float* states;  // [num_units] of parts that a unit begins with, then [num_blocks] of those that go on with one
    int* arrived;   // [num_units] blocks done with their part, of units that several hold; zero before and after
};

// What a warp left in one of its slots: of which unit, and who else has a part of it. Row and head in one number, or
// NO_UNIT.
struct Slot {
    int unit;
    Holders holders;
    int is_last;  // once its part is reported: all others' were before
    DEVICE int row() const { return unit >> 16; }
    DEVICE int head() const { return unit & 0xffff; }
};
constexpr int NO_UNIT = -1;

// Shared memory of a block; behind it, what belongs to the line.
struct Shared {
    float states[NUM_SLOTS * STATE_FLOATS];  // per warp, of a unit that began before its slice, of one that goes on
    Slot slots[NUM_SLOTS];                   // the same
    Slot open[2];  // units that other blocks have a part of, too: one that began before the block, one that goes on
    Line line;     // here it takes up no registers
};

DEVICE void copy_line(Line& line, const int* words, int batch) {
    for (int i = threadIdx.x; i < Line::num_words(batch); i += NUM_THREADS) reinterpret_cast<int*>(&line)[i] = words[i];
}

// The first lines of the interval table are on their way while the line is.
DEVICE void prefetch_table(const Job& job, int batch) {
    constexpr int SPANS_PER_LINE = 128 / sizeof(Span), MOST_LINES = 2048;
    int line = blockIdx.x * NUM_THREADS + threadIdx.x;
    if (line < min(MOST_LINES, batch * job.max_spans / SPANS_PER_LINE)) prefetch(job.spans + line * SPANS_PER_LINE);
}

// The logarithm of the sum of all weights, to base e, if it is asked for. Scores are in base 2.
DEVICE void write_lse(const Job& job, int row, int head, int num_kv_heads, float greatest, float weight) {
    constexpr float LN_2 = 0.6931471805599453f;
    if (job.lse) job.lse[(i64)row * num_kv_heads * GROUP + head] = (greatest + log2_fast(weight)) * LN_2;
}

// Attention of one unit's group of heads over a part of its tokens, in the registers of one warp.
struct Part {
    Sums sums;
    float greatest[HEAD_TILES][2];  // of heads 2 * lane.column() and + 1, the same in all rows
    float weight[HEAD_TILES][2];    // this lane's tokens only, until `finish`

    DEVICE void clear() {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++) {
#pragma unroll
            for (int m = 0; m < SUM_TILES; m++)
                sums[tile][m][0] = sums[tile][m][1] = sums[tile][m][2] = sums[tile][m][3] = 0.f;
            greatest[tile][0] = greatest[tile][1] = NO_SCORE;
            weight[tile][0] = weight[tile][1] = 0.f;
        }
    }

    // Scores become weights (relative to the greatest so far); what there is already is scaled to match.
    DEVICE void weigh(Scores& scores, int num_valid, float scale, Lane lane) {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++) {
            float top[2] = {NO_SCORE, NO_SCORE};
#pragma unroll
            for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& s = scores[sub][tile][i];
                    bool valid = 16 * sub + entry_of_row(lane.row(), i / 2) < num_valid;
                    s = valid ? s * scale : NO_SCORE;
                    top[i % 2] = fmaxf(top[i % 2], s);
                }
            }
            float keep[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                for (int step = 4; step < 32; step *= 2)
                    top[h] = fmaxf(top[h], __shfl_xor_sync(FULL_WARP, top[h], step));
                top[h] = fmaxf(top[h], greatest[tile][h]);
                keep[h] = exp2_fast(greatest[tile][h] - top[h]);
                greatest[tile][h] = top[h];
                weight[tile][h] *= keep[h];
            }
#pragma unroll
            for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& s = scores[sub][tile][i];
                    s = exp2_fast(s - top[i % 2]);
                    weight[tile][i % 2] += s;
                }
            }
#pragma unroll
            for (int m = 0; m < SUM_TILES; m++) {
                sums[tile][m][0] *= keep[0];
                sums[tile][m][1] *= keep[1];
                sums[tile][m][2] *= keep[0];
                sums[tile][m][3] *= keep[1];
            }
        }
    }

    DEVICE void add(const Scores& weights, const Values& values) {
#pragma unroll
        for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
            for (int tile = 0; tile < HEAD_TILES; tile++) {
                const float (&w)[4] = weights[sub][tile];
                u32 weights0 = transpose_8x8(pack(w[0], w[1])), weights1 = transpose_8x8(pack(w[2], w[3]));
                accumulate(sums[tile], values, sub, weights0, weights1);
            }
        }
    }

    // Every lane's weight becomes that of all tokens.
    DEVICE void finish() {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                for (int step = 4; step < 32; step *= 2)
                    weight[tile][h] += __shfl_xor_sync(FULL_WARP, weight[tile][h], step);
    }

    DEVICE void store(float* state, Lane lane) const {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int head = 8 * tile + 2 * lane.column() + h;
                if (head >= GROUP) continue;
                float* at = state + head * HEAD_FLOATS;
                auto sum = [&](int m, int half) { return sums[tile][m][2 * half + h]; };
#pragma unroll
                for (int m = 0; m < 4 * PARTS; m += 4) {
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        *reinterpret_cast<float4*>(at + dimension_of(m, half, lane)) =
                            make_float4(sum(m, half), sum(m + 1, half), sum(m + 2, half), sum(m + 3, half));
                }
                if (HAS_HALF_PART) {
                    constexpr int m = 4 * PARTS;
                    *reinterpret_cast<float4*>(at + dimension_of(m, 0, lane)) =
                        make_float4(sum(m, 0), sum(m + 1, 0), sum(m, 1), sum(m + 1, 1));
                }
                if (lane.row() == 0)
                    *reinterpret_cast<float2*>(at + HEAD_DIM) = make_float2(greatest[tile][h], weight[tile][h]);
            }
        }
    }

    DEVICE void write(const Job& job, int row, int kv_head, int num_kv_heads, Lane lane) const {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int head = 8 * tile + 2 * lane.column() + h;
                if (head >= GROUP) continue;
                float inverse = 1.f / weight[tile][h];
                u16* out = job.out.at(row, kv_head * GROUP + head);
                auto sum = [&](int m, int half) { return sums[tile][m][2 * half + h] * inverse; };
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    int m = 4 * p;
                    uint4 x = make_uint4(pack(sum(m, 0), sum(m + 1, 0)), pack(sum(m + 2, 0), sum(m + 3, 0)),
                                         pack(sum(m, 1), sum(m + 1, 1)), pack(sum(m + 2, 1), sum(m + 3, 1)));
                    *reinterpret_cast<uint4*>(out + dimension_of(m, 0, lane)) = x;
                }
                if (HAS_HALF_PART) {
                    int m = 4 * PARTS;
                    uint2 x = make_uint2(pack(sum(m, 0), sum(m + 1, 0)), pack(sum(m, 1), sum(m + 1, 1)));
                    *reinterpret_cast<uint2*>(out + dimension_of(m, 0, lane)) = x;
                }
                if (lane.row() == 0)
                    write_lse(job, row, kv_head * GROUP + head, num_kv_heads, greatest[tile][h], weight[tile][h]);
            }
        }
    }
};

// List entries [first, last) of one unit, or every `step`-th tile of them. The loads of a tile are issued while the one
// before is worked on: up to a tile of keys and values per warp is under way. `meanwhile` is done while the first is.
// Where the entries stand does not depend on the kernel before; what stands there may.
template <class Meanwhile>
DEVICE void attend(Part& part, const Job& job, int row, int kv_head, int num_spans, int first, int last, int step,
                   Lane lane, Meanwhile meanwhile) {
    const u16* keys = job.keys.at(row, kv_head);
    const u16* values = job.values.at(row, kv_head);
    // Entries behind the last stand for the last: loaded again, weighed nothing.
    int entry = first + lane.index % TILE_TOKENS;
    Cursor cursor;
    cursor.start(job.spans + (i64)row * job.max_spans, num_spans, first, min(entry, last - 1), lane.index);
    int position = cursor.position(min(entry, last - 1));
    wait_for_inputs();
    Queries queries;
    queries.load(job.queries.at(row, kv_head * GROUP), job.queries.head_stride, lane);
    Keys key_tile;
    Values value_tile;
    key_tile.load(keys, job.keys.token_stride, position, lane);
    value_tile.load(values, job.values.token_stride, position, lane);
    part.clear();
    meanwhile();
    for (int tile = first; tile < last; tile += step * TILE_TOKENS) {
        bool more = tile + step * TILE_TOKENS < last;
        entry += step * TILE_TOKENS;
        if (more) position = cursor.position(min(entry, last - 1));
        Scores scores;
        score(scores, key_tile, queries, lane);
        if (more) key_tile.load(keys, job.keys.token_stride, position, lane);
        part.weigh(scores, last - tile, job.scale, lane);
        part.add(scores, value_tile);
        if (more) value_tile.load(values, job.values.token_stride, position, lane);
    }
    part.finish();
}

// One head's result.
DEVICE void write_head(const Job& job, const Merged& merged, int row, int head, int num_kv_heads, Lane lane) {
    float inverse = 1.f / merged.weight;
    uint2 x = make_uint2(pack(merged.sum.x * inverse, merged.sum.y * inverse),
                         pack(merged.sum.z * inverse, merged.sum.w * inverse));
    if (lane.index < QUADS_PER_HEAD) reinterpret_cast<uint2*>(job.out.at(row, head))[lane.index] = x;
    if (lane.index == 0) write_lse(job, row, head, num_kv_heads, merged.greatest, merged.weight);
}

// Where this block leaves its part of a unit that others have a part of, too.
DEVICE float* state_of(const Job& job, const Line& line, const Slot& slot) {
    int unit = slot.row() * line.num_kv_heads + slot.head();
    int block = blockIdx.x;
    return job.states + (i64)(block == slot.holders.first ? unit : line.num_units() + block) * STATE_FLOATS;
}

// Count this block's part of a unit that several hold. Whether it was the last; by one thread, for all whose stores it
// has seen at a barrier: a fence covers those.
DEVICE bool is_last_part(const Job& job, const Line& line, const Slot& slot) {
    int* counter = job.arrived + slot.row() * line.num_kv_heads + slot.head();
    fence_device();
    if (atomicAdd(counter, 1) != slot.holders.last - slot.holders.first) return false;
    fence_device();
    *counter = 0;
    return true;
}

// One head's parts of a unit, 32 at a time from `part` on: those of all holders, or those of a run of slots.
DEVICE States parts_of_holders(const Job& job, const Line& line, const Slot& slot, int part, int head) {
    i64 first = part == 0 ? slot.row() * line.num_kv_heads + slot.head() : line.num_units() + slot.holders.first + part;
    i64 base = line.num_units() + slot.holders.first + part;
    int num_parts = slot.holders.last - slot.holders.first + 1;
    const float* states = job.states + head * HEAD_FLOATS;
    return {states + first * STATE_FLOATS, states + base * STATE_FLOATS, FULL_WARP >> max(0, 32 - (num_parts - part))};
}
DEVICE States parts_in_slots(const Shared& shared, u32 run, int head) {
    int first = __ffs(run) - 1;
    const float* states = shared.states + first * STATE_FLOATS + head * HEAD_FLOATS;
    return {states, states, run >> first};
}

// A warp's slice of the line, unit by unit. A unit that lies in it is written; of any other, the part is left in one of
// the warp's slots.
DEVICE void work_slice(const Job& job, Shared& shared, int warp, Lane lane) {
    const Line& line = shared.line;
    Slot* slots = shared.slots + 2 * warp;
    if (lane.index < 2) slots[lane.index].unit = NO_UNIT;
    __syncwarp();
    Slice slice = line.slice(blockIdx.x * NUM_WARPS + warp);
    Place at = slice.from;
    int left = uniform(slice.length), step = uniform(slice.step);
    while (left > 0) {
        at = {uniform(at.row), uniform(at.head), uniform(at.tile)};
        int visible = uniform(line.num_visible(at.row));
        int first = at.tile * TILE_TOKENS, last = min(visible, first + left * TILE_TOKENS);
        if (first < last) {
            bool is_whole = first == 0 && last == visible && step == 1;
            int slot = first == 0;
            auto label = [&] {
                if (!is_whole && lane.index == 0)
                    slots[slot] = {at.row << 16 | at.head, line.holders_of(at.row, at.head), 0};
            };
            Part part;
            attend(part, job, at.row, at.head, line.num_spans(at.row), first, last, step, lane, label);
            if (is_whole)
                part.write(job, at.row, at.head, line.num_kv_heads, lane);
            else
                part.store(shared.states + (2 * warp + slot) * STATE_FLOATS, lane);
        }
        left -= Line::unit_length(visible) - at.tile;
        if (left > 0) at = line.next_unit(at);
    }
}

// The block's slots in use, as bits. Those of one unit lie behind one another: a run.
struct Runs {
    u32 used, firsts;

    DEVICE Runs(const Shared& shared, Lane lane) {
        int unit = lane.index < NUM_SLOTS ? shared.slots[lane.index].unit : NO_UNIT;
        used = __ballot_sync(FULL_WARP, unit != NO_UNIT);
        u32 below = used & ((1u << lane.index) - 1);
        int unit_below = __shfl_sync(FULL_WARP, unit, below ? 31 - __clz(below) : lane.index);
        firsts = __ballot_sync(FULL_WARP, unit != NO_UNIT && (below == 0 || unit_below != unit));
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

// One step of `merge`, one head of one unit per warp. Of what is in slots, a unit that is complete is written; any
// other's state goes to global memory, and is noted as open. Then open units whose last part was this block's.
DEVICE void merge_step(const Job& job, Shared& shared, const Runs& runs, bool is_across, int warp, Lane lane) {
    const Line& line = shared.line;
    int num_units = is_across ? 2 : __popc(runs.firsts);
    for (int item = warp; item < num_units * GROUP; item += NUM_WARPS) {
        int number = item / GROUP, head = item % GROUP;
        u32 run = is_across ? 0 : runs.run(number);
        const Slot& slot = is_across ? shared.open[number] : shared.slots[__ffs(run) - 1];
        if (is_across && (slot.unit == NO_UNIT || !slot.is_last)) continue;
        Merged merged;
        int num_parts = is_across ? slot.holders.last - slot.holders.first + 1 : 1;
        for (int part = 0; part < num_parts; part += 32)
            merged.add(is_across ? parts_of_holders(job, line, slot, part, head) : parts_in_slots(shared, run, head),
                       lane.index);
        if (is_across || slot.holders.first == slot.holders.last) {
            write_head(job, merged, slot.row(), slot.head() * GROUP + head, line.num_kv_heads, lane);
        } else {
            merged.store(state_of(job, line, slot) + head * HEAD_FLOATS, lane.index);
            if (head == 0 && lane.index == 0) shared.open[slot.holders.first == blockIdx.x] = slot;
        }
    }
}

// Make whole what the block's warps left in parts. One loop, not two calls: its code is read from memory once.
DEVICE void merge(const Job& job, Shared& shared, int warp) {
    Lane lane;
    if (warp == 0 && lane.index < 2) shared.open[lane.index].unit = NO_UNIT;
    __syncthreads();
    Runs runs(shared, lane);
#pragma unroll 1
    for (int step = 0; step < 2; step++) {
        merge_step(job, shared, runs, step == 1, warp, lane);
        // Dealt out, no unit spans blocks.
        if (step == 1 || shared.line.deal.warps) return;
        __syncthreads();
        if (warp == 0 && lane.index < 2 && shared.open[lane.index].unit != NO_UNIT)
            shared.open[lane.index].is_last = is_last_part(job, shared.line, shared.open[lane.index]);
        __syncthreads();
    }
}

// Rows that see nothing (padding) give zeros, and a log-sum-exp of minus infinity.
DEVICE void write_empty_rows(const Job& job, const Line& line) {
    int num_heads = line.num_kv_heads * GROUP;
    for (int row = blockIdx.x; row < line.batch; row += gridDim.x) {
        if (line.num_visible(row) != 0) continue;
        for (int i = threadIdx.x; i < num_heads * HEAD_DIM / 8; i += NUM_THREADS) {
            u16* out = job.out.at(row, i / (HEAD_DIM / 8)) + i % (HEAD_DIM / 8) * 8;
            *reinterpret_cast<uint4*>(out) = make_uint4(0, 0, 0, 0);
        }
        for (int i = threadIdx.x; job.lse && i < num_heads; i += NUM_THREADS)
            job.lse[(i64)row * num_heads + i] = -__int_as_float(0x7f800000);
    }
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, BLOCKS_PER_SM)
    selfspan_attention(u16* queries, i64 query_row_stride, i64 query_head_stride,                               //
                       const u16* keys, i64 key_row_stride, i64 key_head_stride, i64 key_token_stride,          //
                       const u16* values, i64 value_row_stride, i64 value_head_stride, i64 value_token_stride,  //
                       u16* out, i64 out_row_stride, i64 out_head_stride, float* lse,                           //
                       const Span* spans, const int* line_words, int batch, int max_spans, float scale, float* states,
                       int* arrived, int is_plan_done) {
    DYNAMIC_SHARED(memory);
    // The first launch behind a plan waits for it, and lets nobody start who would not.
    if (!is_plan_done) wait_for_inputs();
    let_next_start();
    Job job = {{queries, query_row_stride, query_head_stride},
               {out, out_row_stride, out_head_stride},
               lse,
               {keys, key_row_stride, key_head_stride, key_token_stride},
               {values, value_row_stride, value_head_stride, value_token_stride},
               spans,
               max_spans,
               scale,
               states,
               arrived};
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    int warp = uniform(threadIdx.x / 32);
    // Of any other, the plan is older than the kernel before, whatever that is.
    copy_line(shared.line, line_words, batch);
    prefetch_table(job, batch);
    __syncthreads();
    work_slice(job, shared, warp, Lane());
    // Whoever had nothing to do has not waited yet.
    wait_for_inputs();
    merge(job, shared, warp);
    write_empty_rows(job, shared.line);
}
