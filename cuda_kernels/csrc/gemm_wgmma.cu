// x W^T for a batch of up to 128 rows, in the time of reading W once, on Hopper GPUs: tiles come by the copy engine,
// and are multiplied by groups of four warps (wgmma).
//
// A cluster of one, two or four blocks has a share of W's rows, in units of 16, and each of n blocks every n-th piece
// of the depth: so they read neighbouring parts of the same rows, a block needs a part of x only, and W's rows are
// shared out evenly even where there are few. One warp asks for tiles, well ahead; three groups of four warps multiply
// up to four units each. When those are done, every block gets the others' sums of its part of the batch, through the
// cluster's shared memory, while tiles of the next units are coming in. Nothing of W depends on what runs before: the
// first tiles are on their way while that is not yet done.
//
// Injected: IS_BF16 (else fp16), BATCH_TILE (rows of x that there is room for: 32, 64, 96 or 128), NUM_BLOCKS (of a
// cluster).
#include <hopper.cuh>

#include <gated.cuh>

// A unit is what one warp multiplies: 16 rows of W; with gates, eight of them and the eight that go with them.
constexpr int UNIT_ROWS = 16, STAGE_DEPTH = 64, UNITS = 4;
constexpr int NUM_GROUPS = 3, GROUP_THREADS = 32 * UNITS, NUM_THREADS = NUM_GROUPS * GROUP_THREADS + 32;
// Floats that a thread holds of a block's part of the batch.
constexpr int PART = BATCH_TILE / 2 / NUM_BLOCKS;

// A tile is of 64 columns, 128 bytes a row; the tensor cores want it at a multiple of 1,024 bytes, and take 64 rows at
// a time, of which a group may have less: what its last warps make of the rows behind is never looked at.
constexpr int MAX_STAGES = 12, UNIT_BYTES = 2 * UNIT_ROWS * STAGE_DEPTH, X_BYTES = 2 * BATCH_TILE * STAGE_DEPTH;
// What the other blocks send of a unit: fours of floats.
constexpr int FOURS = PART / 4, PARTS_OF_UNIT = (NUM_BLOCKS - 1) * FOURS * 32;

struct Barriers {
    Barrier full[MAX_STAGES], empty[MAX_STAGES], arrived[NUM_GROUPS], taken[NUM_GROUPS];

    DEVICE void init() {
        for (int i = 0; i < MAX_STAGES; i++) full[i].init(1), empty[i].init(UNITS * NUM_GROUPS);
        for (int i = 0; i < NUM_GROUPS; i++) arrived[i].init(1), taken[i].init(UNITS * max(1, NUM_BLOCKS - 1));
        fence_barriers();
    }
};

// Shared memory: barriers; a ring of stages, of which each has tiles of the units of a pass, and one of x; then what
// the other blocks send, of as many units.
struct Memory {
    char* begin;
    int num_stages, max_units;
    static constexpr int HEAD_BYTES = 1024;

    DEVICE Barriers& barriers() const { return *reinterpret_cast<Barriers*>(begin); }
    DEVICE int stage_bytes() const { return max_units * UNIT_BYTES + X_BYTES; }
    DEVICE char* weight(int slot, int unit) const {
        return begin + HEAD_BYTES + slot * stage_bytes() + unit * UNIT_BYTES;
    }
    DEVICE char* x(int slot) const { return weight(slot, max_units); }
    // A group's own in all passes, whichever its units are: groups do not wait for each other.
    DEVICE float4* parts(int group, int warp) const {
        int of_group = (max_units + NUM_GROUPS - 1) / NUM_GROUPS;
        return reinterpret_cast<float4*>(weight(num_stages, 0)) + (group * of_group + warp) * PARTS_OF_UNIT;
    }
};

// W in boxes of one to four units.
struct WeightMaps {
    TensorMap of_units[UNITS];
};

// Equal shares of so many: the first ones are one larger where that does not come out even.
struct Shares {
    int each, larger;

    DEVICE Shares(int of, int shares) : each(of / shares), larger(of % shares) {}
    DEVICE int size(int i) const { return each + (i < larger); }
    DEVICE int begin(int i) const { return i * each + min(i, larger); }
};

// What a block works on: its pieces of the depth, in one pass after the other. A group that has no units in a pass has
// none in a later one.
struct Share {
    int rank, num_pieces, first_unit, num_passes;
    Shares passes;

    DEVICE Share(int rank, int depth, Shares of_clusters, int cluster, int num_passes)
        : rank(rank),
          num_pieces((depth / STAGE_DEPTH - rank + NUM_BLOCKS - 1) / NUM_BLOCKS),
          first_unit(of_clusters.begin(cluster)),
          num_passes(num_passes),
          passes(of_clusters.size(cluster), num_passes) {}
    DEVICE int column(int piece) const { return (piece * NUM_BLOCKS + rank) * STAGE_DEPTH; }
    DEVICE int num_units(int pass, int group) const {
        return pass < num_passes ? Shares(passes.size(pass), NUM_GROUPS).size(group) : 0;
    }
    // The group's first one, of those of the pass; and the pass's first one, of all.
    DEVICE int in_pass(int pass, int group) const { return Shares(passes.size(pass), NUM_GROUPS).begin(group); }
    DEVICE int unit(int pass) const { return first_unit + passes.begin(pass); }
};

// A place in the order in which a block's tiles come.
struct Turn {
    int pass = 0, piece = 0, slot = 0, round = 0;

    DEVICE void advance(int num_pieces, int num_stages) {
        if (++piece == num_pieces) piece = 0, pass++;
        if (++slot == num_stages) slot = 0, round++;
    }
};

// One thread asks for tiles.
DEVICE void bring(const Memory& memory, const Share& share, const WeightMaps& weight, const TensorMap& x) {
    const int num_turns = share.num_passes * share.num_pieces, num_ahead = min(memory.num_stages, num_turns);
    // Measured on an H100, in a decode step: 0.5 to 2 % faster than the other way round. Why it turns is not known.
    const u64 policy = BATCH_TILE <= 64 ? keep_shortly() : keep_as_usual();
    Barriers& barriers = memory.barriers();
    auto bring_weight = [&](const Turn& turn) {
        Barrier& full = barriers.full[turn.slot];
        full.arrive_and_expect(X_BYTES + UNIT_BYTES * share.passes.size(turn.pass));
        for (int group = 0; group < NUM_GROUPS; group++)
            if (int num = share.num_units(turn.pass, group)) {
                int unit = share.in_pass(turn.pass, group);
                copy_tile(memory.weight(turn.slot, unit), weight.of_units[num - 1], share.column(turn.piece),
                          share.unit(turn.pass) + unit, full, policy);
            }
    };
    auto bring_x = [&](const Turn& turn) {
        copy_tile(memory.x(turn.slot), x, share.column(turn.piece), 0, barriers.full[turn.slot]);
    };
    Turn weights, inputs;
    for (int i = 0; i < num_ahead; i++, weights.advance(share.num_pieces, memory.num_stages)) bring_weight(weights);
    wait_for_inputs();
    for (int i = 0; i < num_ahead; i++, inputs.advance(share.num_pieces, memory.num_stages)) bring_x(inputs);
    for (int i = num_ahead; i < num_turns; i++, weights.advance(share.num_pieces, memory.num_stages)) {
        barriers.empty[weights.slot].wait(weights.round - 1);
        bring_weight(weights);
        bring_x(weights);
    }
}

// The sums of a group's units over this block's pieces. first_unit: of the pass's. `turn` goes on.
DEVICE void multiply_pieces(float (&sums)[BATCH_TILE / 2], const Memory& memory, int num_pieces, int first_unit,
                            int lane, Turn& turn) {
    Barriers& barriers = memory.barriers();
    int before = 0;
    for (int i = 0; i < num_pieces; i++, turn.advance(num_pieces, memory.num_stages)) {
        barriers.full[turn.slot].wait(turn.round);
        u64 weight = tile_of(memory.weight(turn.slot, first_unit)), x = tile_of(memory.x(turn.slot));
        begin_products();
#pragma unroll
        for (int k = 0; k < STAGE_DEPTH / 16; k++) multiply_tiles(sums, weight + 2 * k, x + 2 * k, i + k > 0);
        commit_products();
        // The products of this piece may go on while the next one is waited for; those before are done.
        wait_products<1>();
        if (i > 0 && lane == 0) barriers.empty[before].arrive();
        before = turn.slot;
    }
    wait_products<0>();
    keep_behind(sums);
    if (lane == 0) barriers.empty[before].arrive();
}

// A unit's results: where they go, and what is done to them.
struct Results {
    u16* out;
    const u16* bias;
    i64 num_out;
    int batch, first_row, unit, lane;
    bool are_gated;

    // four: of two rows of W, eight apart, and two rows of the batch from 8 * i + 2 * (lane % 4) on.
    DEVICE void write(int i, float4 four) const {
        int column = unit * (are_gated ? UNIT_ROWS / 2 : UNIT_ROWS);
        if (are_gated) {
            u32 gates = pack(four.x, four.y), ups = pack(four.z, four.w);
            four.x = gated(widen(gates & 0xffff), widen(ups & 0xffff));
            four.y = gated(widen(gates >> 16), widen(ups >> 16));
        } else if (bias) {
            float upper = widen(bias[column + lane / 4]), lower = widen(bias[column + 8 + lane / 4]);
            four.x += upper, four.y += upper, four.z += lower, four.w += lower;
        }
        write_turned(i, column, pack(four.x, four.y));
        if (!are_gated) write_turned(i, column + 8, pack(four.z, four.w));
    }
    DEVICE void write_turned(int i, int column, u32 pair) const {
        u32 turned = transpose_8x8(pair);
        int row = first_row + 8 * i + lane / 4;
        if (row < batch) *reinterpret_cast<u32*>(out + row * num_out + column + 2 * (lane % 4)) = turned;
    }
};

// Sums of this block's pieces become sums of the whole depth, of its part of the batch; always in the same order.
struct Exchange {
    float4* parts;  // of this warp's unit
    Barrier &arrived, &taken;
    int pass, num_units;  // of the group: its first warps hold one each
    bool is_last;

    template <int RANK>
    DEVICE void run(float (&sums)[BATCH_TILE / 2], const Results& results) const {
        const int warp = threadIdx.x / 32 % UNITS, lane = results.lane;
        if (NUM_BLOCKS > 1) {
            // The others have taken what was sent in the pass before. Who sends nothing is not waited for by them: it
            // could miss that, and wait for ever.
            if (pass > 0 && warp < num_units) taken.wait_for_cluster(pass - 1);
            if (warp == 0 && lane == 0) arrived.arrive_and_expect((int)sizeof(float4) * PARTS_OF_UNIT * num_units);
        }
        if (warp < num_units) send_parts<RANK>(sums, lane);
        // Warps without a unit, too: else one could say of the next pass that all is taken, for one that is not so far.
        if (NUM_BLOCKS > 1) arrived.wait_for_cluster(pass);
        if (warp < num_units)
#pragma unroll
            for (int i = 0; i < FOURS; i++) results.write(i, total<RANK>(sums, i, lane));
        // Nobody says that to a block that may be gone.
        if (is_last) return;
        __syncwarp();
#pragma unroll
        for (int step = 1; step < NUM_BLOCKS; step++)
            if (lane == 0) taken.arrive_at((RANK + step) % NUM_BLOCKS);
    }

    // In the memory of block `to`: where block `from` leaves its part.
    DEVICE float4* part(int to, int from, int i, int lane) const {
        return parts + ((from - (from > to)) * FOURS + i) * 32 + lane;
    }

    template <int RANK>
    DEVICE void send_parts(float (&sums)[BATCH_TILE / 2], int lane) const {
#pragma unroll
        for (int step = 1; step < NUM_BLOCKS; step++) {
            const int other = (RANK + step) % NUM_BLOCKS;
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
                const float* own = sums + other * PART + 4 * i;
                send(other, part(other, RANK, i, lane), own[0], own[1], own[2], own[3], arrived);
            }
        }
    }

    template <int RANK>
    DEVICE float4 total(float (&sums)[BATCH_TILE / 2], int i, int lane) const {
        float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int other = 0; other < NUM_BLOCKS; other++) {
            const float* own = sums + RANK * PART + 4 * i;
            float4 four = make_float4(own[0], own[1], own[2], own[3]);
            if (other != RANK) four = *part(RANK, other, i, lane);
            total.x += four.x, total.y += four.y, total.z += four.z, total.w += four.w;
        }
        return total;
    }
};

// The tiles of other groups' units: this one has nothing to do with them.
DEVICE void skip_pieces(Barriers& barriers, int num_pieces, int num_stages, int lane, Turn& turn) {
    for (int i = 0; i < num_pieces; i++, turn.advance(num_pieces, num_stages)) {
        barriers.full[turn.slot].wait(turn.round);
        // No lane may be two rounds behind the first.
        __syncwarp();
        if (lane == 0) barriers.empty[turn.slot].arrive();
    }
}

// x: [batch, depth], batch at most BATCH_TILE, in boxes of BATCH_TILE rows and 64 columns. weight: [num_rows, depth] as
// [num_rows / 16, 2, 8, depth], in boxes of 64 columns; its rows in the order of the results, or, with gates, of which
// each eight are followed by the eight that go with them. depth: a multiple of 64, at least 256; num_rows: of 16.
// bias: [num_rows] or null, only without gates. out: [batch, num_rows], the product; or [batch, num_rows / 2],
// silu(gate) * up. Every cluster has so many passes, with at most max_units units and twelve.
extern "C" __global__ void CLUSTER(NUM_BLOCKS) __launch_bounds__(NUM_THREADS, 1)
    selfspan_linear_wide(MAP_ARGUMENT(TensorMap) x, MAP_ARGUMENT(WeightMaps) weight, const u16* bias, int batch,
                         int num_rows, int depth, int are_gated, int num_passes, int max_units, int num_stages,
                         u16* out) {
    DYNAMIC_SHARED_1024(begin);
    const Memory memory = {begin, num_stages, max_units};
    const int lane = lane_index(), warp = threadIdx.x / 32, group = warp / UNITS, rank = cluster_rank();
    let_next_start();
    const bool brings = group == NUM_GROUPS && lane == 0;
    if (brings) memory.barriers().init();
    __syncwarp();
    arrive_in_cluster();
    const Shares of_clusters(num_rows / UNIT_ROWS, gridDim.x / NUM_BLOCKS);
    const Share share(rank, depth, of_clusters, blockIdx.x / NUM_BLOCKS, num_passes);
    if (brings) bring(memory, share, weight, x);
    __syncwarp();
    wait_for_cluster();
    // Nothing is there before; waited for here, it costs those who are still at work nothing.
    wait_for_inputs();
    if (group == NUM_GROUPS) return;
    Turn turn;
    for (int pass = 0; pass < num_passes; pass++) {
        const int num_units = share.num_units(pass, group);
        if (!num_units) {
            skip_pieces(memory.barriers(), share.num_pieces, num_stages, lane, turn);
            continue;
        }
        float sums[BATCH_TILE / 2];
        const int first_unit = share.in_pass(pass, group), unit = first_unit + warp % UNITS;
        multiply_pieces(sums, memory, share.num_pieces, first_unit, lane, turn);
        const Exchange exchange = {memory.parts(group, warp % UNITS),
                                   memory.barriers().arrived[group],
                                   memory.barriers().taken[group],
                                   pass,
                                   num_units,
                                   share.num_units(pass + 1, group) == 0};
        const int num_out = are_gated ? num_rows / 2 : num_rows;
        const Results results = {
            out, bias, num_out, batch, rank * BATCH_TILE / NUM_BLOCKS, share.unit(pass) + unit, lane, (bool)are_gated};
        if (rank == 0) exchange.run<0>(sums, results);
#if NUM_BLOCKS > 1
        if (rank == 1) exchange.run<1>(sums, results);
#endif
#if NUM_BLOCKS > 2
        if (rank == 2) exchange.run<2>(sums, results);
        if (rank == 3) exchange.run<3>(sums, results);
#endif
    }
}
