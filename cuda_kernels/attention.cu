// Decode attention over exactly the tokens that a row's intervals name: one query token per row, any head grouping.
//
// A persistent grid. Blocks take slices of the line of all (row, key/value head) units (schedule.cuh), one per warp:
// long lines in several rounds, first come, first served. A warp streams its tokens through registers (tile.cuh), with
// the next tile's loads in flight. A unit that lies in one slice is written at once; the parts of the others are merged
// in the block, and where a unit spans blocks, by whichever of them is done last, always in the same order: the same
// input gives the same bits.
//
// Injected: HEAD_DIM (64, 96, 128), GROUP (query heads per key/value head, 1 to 16), IS_BF16 (else fp16), NUM_WARPS.
#include <schedule.cuh>
#include <state.cuh>
#include <tile.cuh>

constexpr int NUM_THREADS = 32 * NUM_WARPS;
constexpr int NUM_SLOTS = 2 * NUM_WARPS;
// As many warps as a multiprocessor's registers hold: twelve of 168, or eight of up to 255 for more than eight heads.
constexpr int WARPS_PER_SM = HEAD_TILES == 1 ? 12 : 8;
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
    const Span* spans;     // [batch, max_spans]
    const int* num_spans;  // [batch]
    int max_spans;
    float scale;    // times log2(e)
    float* states;  // [num_groups, 2] states: of a unit that began before the group, of one that goes on behind it
    int* arrived;   // [num_units] tokens whose part is done, of units that span groups; zero before and after
    int* tickets;   // groups handed out so far; zero before and after
};

// Shared memory of a block.
struct Shared {
    float* states;   // [NUM_SLOTS]: per warp, of a unit that began before its slice, of one that goes on behind it
    int* row_start;  // [batch + 1] of the line
    int* cuts;       // [NUM_WARPS + 1] of the block's slices
    int* slot_unit;  // [NUM_SLOTS] row * num_kv_heads + head, or -1
    int* sources;    // [num_groups]
    int* flags;      // [3]

    DEVICE Shared(float4* memory, int batch) {
        states = reinterpret_cast<float*>(memory);
        row_start = reinterpret_cast<int*>(states + NUM_SLOTS * STATE_FLOATS);
        cuts = row_start + batch + 1;
        slot_unit = cuts + NUM_WARPS + 1;
        flags = slot_unit + NUM_SLOTS;
        sources = flags + 3;
    }
};

// First place of every row on the line; by one warp.
DEVICE void lay_out_rows(int* row_start, const int* num_visible, int batch, int num_kv_heads, int lane) {
    int before = 0;
    for (int first = 0; first < batch; first += 32) {
        int row = first + lane;
        int length = row < batch ? num_kv_heads * Line::unit_length(num_visible[row]) : 0;
        int end = length;
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(FULL_WARP, end, step);
            if (lane >= step) end += other;
        }
        if (row < batch) row_start[row] = before + end - length;
        before += __shfl_sync(FULL_WARP, end, 31);
    }
    if (lane == 0) row_start[batch] = before;
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
                    bool valid = 16 * sub + 8 * (i / 2) + lane.row() < num_valid;
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
#pragma unroll
                for (int m = 0; m < SUM_TILES; m++) {
                    state[head * HEAD_DIM + dimension_of(m, 0, lane)] = sums[tile][m][h];
                    state[head * HEAD_DIM + dimension_of(m, 1, lane)] = sums[tile][m][2 + h];
                }
                if (lane.row() == 0) {
                    greatest_of(state)[head] = greatest[tile][h];
                    weights_of(state)[head] = weight[tile][h];
                }
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
                for (int p = 0; p < VALUE_PARTS; p++) {
                    int m = 4 * p;
                    uint4 x = make_uint4(pack(sum(m, 0), sum(m + 1, 0)), pack(sum(m + 2, 0), sum(m + 3, 0)),
                                         pack(sum(m, 1), sum(m + 1, 1)), pack(sum(m + 2, 1), sum(m + 3, 1)));
                    *reinterpret_cast<uint4*>(out + dimension_of(m, 0, lane)) = x;
                }
                if (HAS_HALF_PART) {
                    int m = 4 * VALUE_PARTS;
                    uint2 x = make_uint2(pack(sum(m, 0), sum(m + 1, 0)), pack(sum(m, 1), sum(m + 1, 1)));
                    *reinterpret_cast<uint2*>(out + dimension_of(m, 0, lane)) = x;
                }
                if (lane.row() == 0)
                    write_lse(job, row, kv_head * GROUP + head, num_kv_heads, greatest[tile][h], weight[tile][h]);
            }
        }
    }
};

// List entries [first, last) of one unit. The loads of a tile are issued while the one before is worked on: up to a
// tile of keys and values per warp is under way.
DEVICE void attend(Part& part, const Job& job, int row, int kv_head, int first, int last, Lane lane) {
    const u16* keys = job.keys.at(row, kv_head);
    const u16* values = job.values.at(row, kv_head);
    Queries queries;
    queries.load(job.queries.at(row, kv_head * GROUP), job.queries.head_stride, lane);
    Cursor cursor;
    cursor.start(job.spans + (i64)row * job.max_spans, job.num_spans[row], first, lane.index);
    // Entries behind the last stand for the last: loaded again, weighed nothing.
    int entry = first + lane.index % TILE_TOKENS;
    int position = cursor.position(min(entry, last - 1));
    Keys key_tile;
    Values value_tile;
    key_tile.load(keys, job.keys.token_stride, position, lane);
    value_tile.load(values, job.values.token_stride, position, lane);
    part.clear();
    for (int tile = first; tile < last; tile += TILE_TOKENS) {
        bool more = tile + TILE_TOKENS < last;
        entry += TILE_TOKENS;
        if (more) position = cursor.position(min(entry, last - 1));
        Scores scores;
        score(scores, key_tile, queries);
        if (more) key_tile.load(keys, job.keys.token_stride, position, lane);
        part.weigh(scores, last - tile, job.scale, lane);
        part.add(scores, value_tile);
        if (more) value_tile.load(values, job.values.token_stride, position, lane);
    }
    part.finish();
}

// One warp's slice, unit by unit.
DEVICE void work_slice(const Job& job, const Line& line, Shared& shared, int warp, Lane lane) {
    int begin = shared.cuts[warp], end = shared.cuts[warp + 1];
    if (lane.index < 2) shared.slot_unit[2 * warp + lane.index] = -1;
    __syncwarp();
    while (begin < end) {
        Place at = line.place(begin);
        int visible = line.num_visible[at.row];
        int unit_start = begin - at.token;
        int last = min(visible, end - unit_start);
        Part part;
        attend(part, job, at.row, at.head, at.token, last, lane);
        if (at.token == 0 && last == visible) {
            part.write(job, at.row, at.head, line.num_kv_heads, lane);
        } else {
            int slot = 2 * warp + (at.token == 0);
            part.store(shared.states + slot * STATE_FLOATS, lane);
            if (lane.index == 0) shared.slot_unit[slot] = at.row * line.num_kv_heads + at.head;
        }
        begin = unit_start + Line::unit_length(visible);
    }
}

// Four elements of one head's result.
DEVICE void write_quad(const Job& job, const Merged& merged, int row, int kv_head, int num_kv_heads, int quad) {
    int head = quad / QUADS_PER_HEAD, dimension = quad % QUADS_PER_HEAD * 4;
    float inverse = 1.f / merged.weight;
    uint2 x = make_uint2(pack(merged.sum.x * inverse, merged.sum.y * inverse),
                         pack(merged.sum.z * inverse, merged.sum.w * inverse));
    *reinterpret_cast<uint2*>(job.out.at(row, kv_head * GROUP + head) + dimension) = x;
    if (dimension == 0) write_lse(job, row, kv_head * GROUP + head, num_kv_heads, merged.greatest, merged.weight);
}

// States in shared memory, slots [first, last), some of them empty (unit < 0): one quad of all of them.
DEVICE Merged merge_slots(const Shared& shared, int first, int last, int quad) {
    Merged merged;
    for (int slot = first; slot < last; slot++) {
        if (shared.slot_unit[slot] < 0) continue;
        const float* state = shared.states + slot * STATE_FLOATS;
        int head = quad / QUADS_PER_HEAD;
        merged.add(reinterpret_cast<const float4*>(state)[quad], greatest_of(state)[head], weights_of(state)[head]);
    }
    return merged;
}

// The tokens of one unit that a stretch of the line holds.
struct Share {
    int num_tokens;
    bool from_start;  // the unit begins in the stretch
};

DEVICE Share share_of(const Line& line, int row, int head, int begin, int end) {
    int start = line.unit_start(row, head);
    int first = max(start, begin), last = min(start + line.num_visible[row], end);
    return {max(0, last - first), start >= begin};
}

// Slots of one unit lie behind one another; `run` counts such runs of used slots.
struct Run {
    int first, last, unit;
};

DEVICE int count_runs(const Shared& shared) {
    int runs = 0;
    for (int slot = 0, unit = -1; slot < NUM_SLOTS; slot++) {
        int here = shared.slot_unit[slot];
        if (here < 0 || here == unit) continue;
        unit = here;
        runs++;
    }
    return runs;
}

DEVICE Run find_run(const Shared& shared, int number) {
    Run run = {0, NUM_SLOTS, -1};
    for (int slot = 0, runs = 0; slot < NUM_SLOTS; slot++) {
        int here = shared.slot_unit[slot];
        if (here < 0 || here == run.unit) continue;
        if (runs > number) {
            run.last = slot;
            break;
        }
        run.first = slot;
        run.unit = here;
        runs++;
    }
    return run;
}

// The parts that this block's warps left in their slots, each run merged by some of the warps. A unit that is complete
// is written; any other's state goes to global memory.
DEVICE void merge_block(const Job& job, const Line& line, const Shared& shared, int group, int warp, Lane lane) {
    int begin = shared.cuts[0], end = shared.cuts[NUM_WARPS];
    int num_runs = count_runs(shared);
    if (num_runs == 0) return;
    // Warps are dealt out over the runs, and a run's warps share its quads. There can be one run more than warps.
    int turn = warp / num_runs;
    for (int number = warp % num_runs; number < num_runs; number += NUM_WARPS) {
        int turns = max(1, (NUM_WARPS - number + num_runs - 1) / num_runs);
        Run run = find_run(shared, number);
        int row = run.unit / line.num_kv_heads, head = run.unit % line.num_kv_heads;
        Share share = share_of(line, row, head, begin, end);
        bool complete = share.num_tokens == line.num_visible[row];
        float* state = job.states + (2 * (i64)group + share.from_start) * STATE_FLOATS;
        for (int quad = lane.index + 32 * turn; quad < QUADS; quad += 32 * turns) {
            Merged merged = merge_slots(shared, run.first, run.last, quad);
            if (complete)
                write_quad(job, merged, row, head, line.num_kv_heads, quad);
            else
                merged.store(state, quad);
        }
    }
}

// Numbers of the states of one unit, in the order of the groups that hold a part of it; by one warp.
DEVICE int list_sources(const Line& line, const Shared& shared, int row, int head, Lane lane) {
    // A cut moves within its unit, or to the start of the next: the groups are those whose uncut stretch touches the
    // unit.
    int start = line.unit_start(row, head), end = start + Line::unit_length(line.num_visible[row]);
    int first = line.slice_of(start) / NUM_WARPS;
    int last = line.slice_of(end - 1) / NUM_WARPS + 1;
    int found = 0;
    for (int group = first + lane.index; group - lane.index < last; group += 32) {
        Share share = {0, false};
        if (group < last)
            share = share_of(line, row, head, line.cut(group * NUM_WARPS), line.cut((group + 1) * NUM_WARPS));
        u32 holders = __ballot_sync(FULL_WARP, share.num_tokens > 0);
        if (share.num_tokens > 0)
            shared.sources[found + __popc(holders & ((1u << lane.index) - 1))] = 2 * group + share.from_start;
        found += __popc(holders);
    }
    return found;
}

// This group was the last to finish a part of a unit: merge all groups' parts. Every warp takes some of them into a
// slot, then the slots are merged.
DEVICE void merge_blocks(const Job& job, const Line& line, const Shared& shared, int row, int head, int warp,
                         Lane lane) {
    if (warp == 0) {
        int found = list_sources(line, shared, row, head, lane);
        if (lane.index == 0) shared.flags[0] = found;
    }
    __syncthreads();
    int num_sources = shared.flags[0];
    float* slot = shared.states + warp * STATE_FLOATS;
    int first = warp * num_sources / NUM_WARPS, last = (warp + 1) * num_sources / NUM_WARPS;
    for (int quad = lane.index; quad < QUADS; quad += 32) {
        Merged merged;
        for (int i = first; i < last; i++) {
            const float* state = job.states + (i64)shared.sources[i] * STATE_FLOATS;
            int in_group = quad / QUADS_PER_HEAD;
            merged.add(load_shared_by_blocks(reinterpret_cast<const float4*>(state) + quad),
                       load_shared_by_blocks(greatest_of(state) + in_group),
                       load_shared_by_blocks(weights_of(state) + in_group));
        }
        merged.store(slot, quad);
    }
    if (lane.index == 0) shared.slot_unit[warp] = first < last ? 0 : -1;
    __syncthreads();
    for (int quad = threadIdx.x; quad < QUADS; quad += NUM_THREADS)
        write_quad(job, merge_slots(shared, 0, NUM_WARPS, quad), row, head, line.num_kv_heads, quad);
    __syncthreads();
}

// The unit that a place lies in, if the stretch [begin, end) of the line holds only a part of it.
DEVICE bool is_incomplete(const Line& line, int at, int begin, int end, Place& unit, int& num_tokens) {
    unit = line.place(at);
    Share share = share_of(line, unit.row, unit.head, begin, end);
    num_tokens = share.num_tokens;
    return num_tokens > 0 && num_tokens < line.num_visible[unit.row];
}

// Report the parts of units that other groups hold a part of too, and finish those units whose last part was ours.
// There are two at most: the one that this group begins in and the one that it ends in.
DEVICE void finish_shared_units(const Job& job, const Line& line, const Shared& shared, int warp, Lane lane) {
    int begin = shared.cuts[0], end = shared.cuts[NUM_WARPS];
    Place units[2];
    int tokens[2];
    bool open[2];
    open[0] = is_incomplete(line, begin, begin, end, units[0], tokens[0]);
    open[1] = is_incomplete(line, end - 1, begin, end, units[1], tokens[1]);
    if (units[0].row == units[1].row && units[0].head == units[1].head) open[1] = false;
    // All of the block's stores before the count, by one thread for all: a fence is cumulative over the barrier.
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            shared.flags[i] = 0;
            if (!open[i]) continue;
            int* counter = job.arrived + units[i].row * line.num_kv_heads + units[i].head;
            int before = atomicAdd(counter, tokens[i]);
            if (before + tokens[i] == line.num_visible[units[i].row]) {
                shared.flags[i] = 1;
                *counter = 0;
            }
        }
        __threadfence();
    }
    __syncthreads();
    bool ours[2] = {shared.flags[0] != 0, shared.flags[1] != 0};
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (ours[i]) merge_blocks(job, line, shared, units[i].row, units[i].head, warp, lane);
}

// Rows that see nothing (padding) give zeros, and a log-sum-exp of minus infinity.
DEVICE void write_empty_rows(const Job& job, const Line& line) {
    int num_heads = line.num_kv_heads * GROUP;
    for (int row = blockIdx.x; row < line.batch; row += gridDim.x) {
        if (line.num_visible[row] != 0) continue;
        for (int i = threadIdx.x; i < num_heads * HEAD_DIM / 8; i += NUM_THREADS) {
            u16* out = job.out.at(row, i / (HEAD_DIM / 8)) + i % (HEAD_DIM / 8) * 8;
            *reinterpret_cast<uint4*>(out) = make_uint4(0, 0, 0, 0);
        }
        for (int i = threadIdx.x; job.lse && i < num_heads; i += NUM_THREADS)
            job.lse[(i64)row * num_heads + i] = -__int_as_float(0x7f800000);
    }
}

// The next group that nobody has, or a number that is none. Multiprocessors do not all read equally fast (those of a
// larger cluster share its way to memory with more), so on long lines the quick ones take more.
DEVICE int next_group(const Job& job, const Shared& shared, int num_groups) {
    if (num_groups == gridDim.x) return num_groups;
    // The slots and cuts of the last group are read no more.
    __syncthreads();
    if (threadIdx.x == 0) {
        int ticket = atomicAdd(job.tickets, 1);
        // Every block asks once in vain: this was the last of all questions.
        if (ticket == num_groups - 1) *job.tickets = 0;
        shared.flags[2] = gridDim.x + ticket;
    }
    __syncthreads();
    return shared.flags[2];
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, BLOCKS_PER_SM)
    selfspan_attention(u16* queries, i64 query_row_stride, i64 query_head_stride,                               //
                       const u16* keys, i64 key_row_stride, i64 key_head_stride, i64 key_token_stride,          //
                       const u16* values, i64 value_row_stride, i64 value_head_stride, i64 value_token_stride,  //
                       u16* out, i64 out_row_stride, i64 out_head_stride, float* lse,                           //
                       const Span* spans, const int* num_spans, const int* num_visible, int batch, int num_kv_heads,
                       int max_spans, float scale, float* states, int* arrived) {
    DYNAMIC_SHARED(memory);
    Job job = {{queries, query_row_stride, query_head_stride},
               {out, out_row_stride, out_head_stride},
               lse,
               {keys, key_row_stride, key_head_stride, key_token_stride},
               {values, value_row_stride, value_head_stride, value_token_stride},
               spans,
               num_spans,
               max_spans,
               scale,
               states,
               arrived,
               arrived + batch * num_kv_heads};
    Shared shared(memory, batch);
    int warp = threadIdx.x / 32;
    Lane lane = {(int)(threadIdx.x % 32)};
    if (warp == 0) lay_out_rows(shared.row_start, num_visible, batch, num_kv_heads, lane.index);
    __syncthreads();
    Line line(shared.row_start, num_visible, batch, num_kv_heads, gridDim.x * NUM_WARPS);
    // One group of slices per block and round.
    int num_groups = gridDim.x * line.num_rounds;
    write_empty_rows(job, line);
    if (line.length == 0) return;
    for (int group = blockIdx.x; group < num_groups; group = next_group(job, shared, num_groups)) {
        if (threadIdx.x <= NUM_WARPS) shared.cuts[threadIdx.x] = line.cut(group * NUM_WARPS + threadIdx.x);
        __syncthreads();
        if (shared.cuts[0] < shared.cuts[NUM_WARPS]) {
            work_slice(job, line, shared, warp, lane);
            __syncthreads();
            merge_block(job, line, shared, group, warp, lane);
            finish_shared_units(job, line, shared, warp, lane);
        }
    }
}
