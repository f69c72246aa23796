// GEMM on Hopper GPUs: x W^T for up to 128 rows of x. Memory-bound: the roofline is the time of reading W once. TMA
// loads tiles into a ring buffer of shared memory, wgmma multiplies them.
//
// A cluster of one, two or four blocks takes a contiguous share of W's rows, in warp tiles of 16 rows, and splits K
// among its blocks: block r of n takes every n-th tile of K. So the blocks read neighbouring parts of the same rows, a
// block needs only its part of x, and W is divided evenly even where it has few rows. One producer warp issues the
// loads, well ahead; three warp groups of four warps are the consumers and multiply up to four warp tiles each per
// pass. At the end of a pass every block receives the other blocks' partial sums of its slice of the batch through
// distributed shared memory, while tiles of the next pass are being loaded. W does not depend on the kernel before, so
// its first tiles are loaded before that has finished (programmatic dependent launch).
//
// Macros: IS_BF16 (otherwise fp16), BATCH_TILE (rows of x that fit: 32, 64, 96 or 128), CLUSTER_SIZE (blocks).
#include <hopper.cuh>

#include <gated.cuh>

// A warp tile is the part of W that one warp multiplies: 16 rows; with gates, eight gate rows and the eight up rows
// that belong to them.
constexpr int WARP_TILE_ROWS = 16, TILE_K = 64, WARPS_PER_GROUP = 4;
constexpr int NUM_WARP_GROUPS = 3, GROUP_THREADS = 32 * WARPS_PER_GROUP;
constexpr int NUM_THREADS = NUM_WARP_GROUPS * GROUP_THREADS + 32;
// Accumulators that a thread holds of a block's slice of the batch.
constexpr int SLICE_FLOATS = BATCH_TILE / 2 / CLUSTER_SIZE;

// A tile has 64 columns, 128 bytes a row. wgmma wants it at a multiple of 1,024 bytes and takes 64 rows at a time. A
// warp group may have fewer: results of the rows behind are never used.
constexpr int MAX_STAGES = 12, WARP_TILE_BYTES = 2 * WARP_TILE_ROWS * TILE_K, X_TILE_BYTES = 2 * BATCH_TILE * TILE_K;
// Partial sums that the other blocks send for a warp tile, in vectors of four floats.
constexpr int SLICE_VECTORS = SLICE_FLOATS / 4, WARP_TILE_PARTIALS = (CLUSTER_SIZE - 1) * SLICE_VECTORS * 32;

struct Barriers {
    Barrier full[MAX_STAGES], empty[MAX_STAGES], received[NUM_WARP_GROUPS], consumed[NUM_WARP_GROUPS];

    DEVICE void init() {
        for (int i = 0; i < MAX_STAGES; i++) full[i].init(1), empty[i].init(WARPS_PER_GROUP * NUM_WARP_GROUPS);
        for (int i = 0; i < NUM_WARP_GROUPS; i++)
            received[i].init(1), consumed[i].init(WARPS_PER_GROUP * max(1, CLUSTER_SIZE - 1));
        fence_barrier_init();
    }
};

// Shared memory: barriers; a ring buffer of stages, each with the warp tiles of a pass and one tile of x; then the
// partial sums that the other blocks send, for as many warp tiles.
struct SharedStorage {
    char* begin;
    int num_stages, max_warp_tiles;
    static constexpr int BARRIER_BYTES = 1024;

    DEVICE Barriers& barriers() const { return *reinterpret_cast<Barriers*>(begin); }
    DEVICE int stage_bytes() const { return max_warp_tiles * WARP_TILE_BYTES + X_TILE_BYTES; }
    DEVICE char* weight(int stage, int warp_tile) const {
        return begin + BARRIER_BYTES + stage * stage_bytes() + warp_tile * WARP_TILE_BYTES;
    }
    DEVICE char* x(int stage) const { return weight(stage, max_warp_tiles); }
    // Each warp group has its own region for partial sums in all passes, whichever its warp tiles are: groups do not
    // wait for each other.
    DEVICE float4* partials(int group, int warp) const {
        int per_group = (max_warp_tiles + NUM_WARP_GROUPS - 1) / NUM_WARP_GROUPS;
        return reinterpret_cast<float4*>(weight(num_stages, 0)) + (group * per_group + warp) * WARP_TILE_PARTIALS;
    }
};

// Maps of W with boxes of one to four warp tiles.
struct WeightMaps {
    TensorMap boxes[WARPS_PER_GROUP];
};

// An even split: where it leaves a remainder, the first shares are larger by one.
struct EvenSplit {
    int each, larger;

    DEVICE EvenSplit(int total, int shares) : each(total / shares), larger(total % shares) {}
    DEVICE int size(int i) const { return each + (i < larger); }
    DEVICE int begin(int i) const { return i * each + min(i, larger); }
};

// The work of a block: its tiles of K, in one pass after the other. A warp group without warp tiles in a pass has none
// in later passes.
struct BlockWork {
    int rank, num_k_tiles, first_warp_tile, num_passes;
    EvenSplit pass_split;

    DEVICE BlockWork(int rank, int depth, EvenSplit cluster_split, int cluster, int num_passes)
        : rank(rank),
          num_k_tiles((depth / TILE_K - rank + CLUSTER_SIZE - 1) / CLUSTER_SIZE),
          first_warp_tile(cluster_split.begin(cluster)),
          num_passes(num_passes),
          pass_split(cluster_split.size(cluster), num_passes) {}
    DEVICE int column(int k_tile) const { return (k_tile * CLUSTER_SIZE + rank) * TILE_K; }
    DEVICE int num_warp_tiles(int pass, int group) const {
        return pass < num_passes ? EvenSplit(pass_split.size(pass), NUM_WARP_GROUPS).size(group) : 0;
    }
    // The group's first warp tile within a pass; and the first warp tile of a pass within W.
    DEVICE int offset_in_pass(int pass, int group) const {
        return EvenSplit(pass_split.size(pass), NUM_WARP_GROUPS).begin(group);
    }
    DEVICE int warp_tile(int pass) const { return first_warp_tile + pass_split.begin(pass); }
};

// A thread's position in the sequence of a block's tiles.
struct PipelineState {
    int pass = 0, k_tile = 0, stage = 0, phase = 0;

    DEVICE void advance(int num_k_tiles, int num_stages) {
        if (++k_tile == num_k_tiles) k_tile = 0, pass++;
        if (++stage == num_stages) stage = 0, phase++;
    }
};

// The producer: one thread issues all loads.
DEVICE void produce_tiles(const SharedStorage& shared, const BlockWork& work, const WeightMaps& weight,
                          const TensorMap& x) {
    const int num_loads = work.num_passes * work.num_k_tiles, num_prefetched = min(shared.num_stages, num_loads);
    // Measured on an H100, in a decode step: 0.5 to 2 % faster than the other way round. Why it depends on the batch is
    // not known.
    const u64 policy = BATCH_TILE <= 64 ? policy_evict_first() : policy_evict_normal();
    Barriers& barriers = shared.barriers();
    auto load_weight = [&](const PipelineState& state) {
        Barrier& full = barriers.full[state.stage];
        full.arrive_and_expect(X_TILE_BYTES + WARP_TILE_BYTES * work.pass_split.size(state.pass));
        for (int group = 0; group < NUM_WARP_GROUPS; group++)
            if (int num = work.num_warp_tiles(state.pass, group)) {
                int warp_tile = work.offset_in_pass(state.pass, group);
                tma_load(shared.weight(state.stage, warp_tile), weight.boxes[num - 1], work.column(state.k_tile),
                         work.warp_tile(state.pass) + warp_tile, full, policy);
            }
    };
    auto load_x = [&](const PipelineState& state) {
        tma_load(shared.x(state.stage), x, work.column(state.k_tile), 0, barriers.full[state.stage]);
    };
    PipelineState weight_state, x_state;
    for (int i = 0; i < num_prefetched; i++, weight_state.advance(work.num_k_tiles, shared.num_stages))
        load_weight(weight_state);
    wait_for_prior_grids();
    for (int i = 0; i < num_prefetched; i++, x_state.advance(work.num_k_tiles, shared.num_stages)) load_x(x_state);
    for (int i = num_prefetched; i < num_loads; i++, weight_state.advance(work.num_k_tiles, shared.num_stages)) {
        barriers.empty[weight_state.stage].wait(weight_state.phase - 1);
        load_weight(weight_state);
        load_x(weight_state);
    }
}

// The sums of a warp group's tiles over this block's tiles of K. first_warp_tile: within the pass. Advances `state`.
DEVICE void mma_k_tiles(float (&acc)[BATCH_TILE / 2], const SharedStorage& shared, int num_k_tiles, int first_warp_tile,
                        int lane, PipelineState& state) {
    Barriers& barriers = shared.barriers();
    int previous = 0;
    for (int i = 0; i < num_k_tiles; i++, state.advance(num_k_tiles, shared.num_stages)) {
        barriers.full[state.stage].wait(state.phase);
        u64 weight = matrix_descriptor(shared.weight(state.stage, first_warp_tile));
        u64 x = matrix_descriptor(shared.x(state.stage));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < TILE_K / 16; k++) wgmma(acc, weight + 2 * k, x + 2 * k, i + k > 0);
        wgmma_commit();
        // The wgmmas of this tile may still run while the next tile is awaited; those of the tile before have finished.
        wgmma_wait<1>();
        if (i > 0 && lane == 0) barriers.empty[previous].arrive();
        previous = state.stage;
    }
    wgmma_wait<0>();
    fence_registers(acc);
    if (lane == 0) barriers.empty[previous].arrive();
}

// Writes the results of a warp tile.
struct Epilogue {
    u16* out;
    const u16* bias;
    i64 num_out;
    int batch, first_row, warp_tile, lane;
    bool is_gated;

    // quad: of two rows of W, eight apart, and two rows of the batch from 8 * i + 2 * (lane % 4) on.
    DEVICE void write(int i, float4 quad) const {
        int column = warp_tile * (is_gated ? WARP_TILE_ROWS / 2 : WARP_TILE_ROWS);
        if (is_gated) {
            u32 gates = pack(quad.x, quad.y), ups = pack(quad.z, quad.w);
            quad.x = gated(widen(gates & 0xffff), widen(ups & 0xffff));
            quad.y = gated(widen(gates >> 16), widen(ups >> 16));
        } else if (bias) {
            float upper = widen(bias[column + lane / 4]), lower = widen(bias[column + 8 + lane / 4]);
            quad.x += upper, quad.y += upper, quad.z += lower, quad.w += lower;
        }
        write_transposed(i, column, pack(quad.x, quad.y));
        if (!is_gated) write_transposed(i, column + 8, pack(quad.z, quad.w));
    }
    DEVICE void write_transposed(int i, int column, u32 pair) const {
        u32 transposed = transpose_8x8(pair);
        int row = first_row + 8 * i + lane / 4;
        if (row < batch) *reinterpret_cast<u32*>(out + row * num_out + column + 2 * (lane % 4)) = transposed;
    }
};

// Sums over the block's tiles of K become sums over all of K, for its slice of the batch; always in the same order.
struct ClusterReduction {
    float4* partials;  // of this warp's tile
    Barrier &received, &consumed;
    int pass, num_warp_tiles;  // of the group: its first warps have one each
    bool is_last;

    template <int RANK>
    DEVICE void run(float (&acc)[BATCH_TILE / 2], const Epilogue& epilogue) const {
        const int warp = threadIdx.x / 32 % WARPS_PER_GROUP, lane = epilogue.lane;
        if (CLUSTER_SIZE > 1) {
            // Wait until the peers have read the sums of the previous pass. A warp that sends nothing must not wait:
            // nobody waits for it, so the phase could complete twice before the warp looks, and the warp would hang.
            if (pass > 0 && warp < num_warp_tiles) consumed.wait_cluster(pass - 1);
            if (warp == 0 && lane == 0)
                received.arrive_and_expect((int)sizeof(float4) * WARP_TILE_PARTIALS * num_warp_tiles);
        }
        if (warp < num_warp_tiles) send_partials<RANK>(acc, lane);
        // Warps without a tile wait, too. Otherwise one of them could report the next pass as consumed before a slower
        // warp with a tile has consumed this one.
        if (CLUSTER_SIZE > 1) received.wait_cluster(pass);
        if (warp < num_warp_tiles)
#pragma unroll
            for (int i = 0; i < SLICE_VECTORS; i++) epilogue.write(i, reduced<RANK>(acc, i, lane));
        // A block that may have exited must not be signalled.
        if (is_last) return;
        __syncwarp();
#pragma unroll
        for (int step = 1; step < CLUSTER_SIZE; step++)
            if (lane == 0) consumed.arrive_at((RANK + step) % CLUSTER_SIZE);
    }

    // In the shared memory of block `to`: where block `from` leaves its partial sums.
    DEVICE float4* partial(int to, int from, int i, int lane) const {
        return partials + ((from - (from > to)) * SLICE_VECTORS + i) * 32 + lane;
    }

    template <int RANK>
    DEVICE void send_partials(float (&acc)[BATCH_TILE / 2], int lane) const {
#pragma unroll
        for (int step = 1; step < CLUSTER_SIZE; step++) {
            const int peer = (RANK + step) % CLUSTER_SIZE;
#pragma unroll
            for (int i = 0; i < SLICE_VECTORS; i++) {
                const float* own = acc + peer * SLICE_FLOATS + 4 * i;
                store_async(peer, partial(peer, RANK, i, lane), own[0], own[1], own[2], own[3], received);
            }
        }
    }

    template <int RANK>
    DEVICE float4 reduced(float (&acc)[BATCH_TILE / 2], int i, int lane) const {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int peer = 0; peer < CLUSTER_SIZE; peer++) {
            const float* own = acc + RANK * SLICE_FLOATS + 4 * i;
            float4 quad = make_float4(own[0], own[1], own[2], own[3]);
            if (peer != RANK) quad = *partial(RANK, peer, i, lane);
            sum.x += quad.x, sum.y += quad.y, sum.z += quad.z, sum.w += quad.w;
        }
        return sum;
    }
};

// The group has no warp tiles in this pass: it only releases the stages.
DEVICE void skip_k_tiles(Barriers& barriers, int num_k_tiles, int num_stages, int lane, PipelineState& state) {
    for (int i = 0; i < num_k_tiles; i++, state.advance(num_k_tiles, num_stages)) {
        barriers.full[state.stage].wait(state.phase);
        // No lane may be two phases behind the first.
        __syncwarp();
        if (lane == 0) barriers.empty[state.stage].arrive();
    }
}

// x: [batch, depth], batch at most BATCH_TILE, in boxes of BATCH_TILE rows and 64 columns. weight: [num_rows, depth]
// seen as [num_rows / 16, 2, 8, depth], in boxes of 64 columns; rows in the order of the results or, with gates, eight
// gate rows followed by the eight up rows that belong to them. depth: a multiple of 64, at least 256; num_rows: a
// multiple of 16. bias: [num_rows] or null, only without gates. out: [batch, num_rows]; with gates [batch, num_rows /
// 2], silu(gate) * up. num_passes: of every cluster, each with at most max_warp_tiles and at most twelve warp tiles.
extern "C" __global__ void CLUSTER(CLUSTER_SIZE) __launch_bounds__(NUM_THREADS, 1)
    selfspan_linear_wgmma(GRID_CONSTANT(TensorMap) x, GRID_CONSTANT(WeightMaps) weight, const u16* bias, int batch,
                          int num_rows, int depth, int is_gated, int num_passes, int max_warp_tiles, int num_stages,
                          u16* out) {
    DYNAMIC_SHARED_1024(begin);
    const SharedStorage shared = {begin, num_stages, max_warp_tiles};
    const int lane = lane_index(), warp = threadIdx.x / 32, group = warp / WARPS_PER_GROUP, rank = cluster_rank();
    launch_dependents();
    const bool is_producer = group == NUM_WARP_GROUPS && lane == 0;
    if (is_producer) shared.barriers().init();
    __syncwarp();
    cluster_arrive();
    const EvenSplit cluster_split(num_rows / WARP_TILE_ROWS, gridDim.x / CLUSTER_SIZE);
    const BlockWork work(rank, depth, cluster_split, blockIdx.x / CLUSTER_SIZE, num_passes);
    if (is_producer) produce_tiles(shared, work, weight, x);
    __syncwarp();
    cluster_wait();
    // Results must not be written before this wait, which costs the warps that are still busy nothing.
    wait_for_prior_grids();
    if (group == NUM_WARP_GROUPS) return;
    PipelineState state;
    for (int pass = 0; pass < num_passes; pass++) {
        const int num_warp_tiles = work.num_warp_tiles(pass, group);
        if (!num_warp_tiles) {
            skip_k_tiles(shared.barriers(), work.num_k_tiles, num_stages, lane, state);
            continue;
        }
        float acc[BATCH_TILE / 2];
        const int first_warp_tile = work.offset_in_pass(pass, group);
        const int warp_tile = first_warp_tile + warp % WARPS_PER_GROUP;
        mma_k_tiles(acc, shared, work.num_k_tiles, first_warp_tile, lane, state);
        const ClusterReduction reduction = {shared.partials(group, warp % WARPS_PER_GROUP),
                                            shared.barriers().received[group],
                                            shared.barriers().consumed[group],
                                            pass,
                                            num_warp_tiles,
                                            work.num_warp_tiles(pass + 1, group) == 0};
        const int num_out = is_gated ? num_rows / 2 : num_rows;
        const int first_row = rank * BATCH_TILE / CLUSTER_SIZE;
        const Epilogue epilogue = {out,  bias,          num_out, batch, first_row, work.warp_tile(pass) + warp_tile,
                                   lane, (bool)is_gated};
        if (rank == 0) reduction.run<0>(acc, epilogue);
#if CLUSTER_SIZE > 1
        if (rank == 1) reduction.run<1>(acc, epilogue);
#endif
#if CLUSTER_SIZE > 2
        if (rank == 2) reduction.run<2>(acc, epilogue);
        if (rank == 3) reduction.run<3>(acc, epilogue);
#endif
    }
}
