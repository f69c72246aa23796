// Small-batch GEMM: x W^T for at most 16 rows of x. Memory-bound: the roofline is the time of reading W once.
//
// One block per multiprocessor; the rows of W are divided among the blocks in tiles of TILE_N = 8 rows, the N of
// mma.m16n8k16, whose M = 16 is the batch. A block takes its tiles in groups of at most MAX_TILES; within a group its
// warps split K in turn, TILE_K elements at a time, so that what a block reads lies together. The order of K is free,
// and is chosen such that every lane loads 16 contiguous bytes. W does not depend on the kernel before, so the first
// stages are loaded before that has finished (programmatic dependent launch).
//
// With IS_INT8 the elements of W are codes of 8 bits, and each row of W has a scale: half the bytes. Codes become
// floats of 16 bits in registers, which hold them exactly, and sums are multiplied by the scale.
//
// Macros: IS_BF16 (otherwise fp16), IS_INT8 (otherwise W has the type of x).
#include <ptx.cuh>

constexpr int NUM_WARPS = 8, NUM_THREADS = 32 * NUM_WARPS;
constexpr int MAX_BATCH = 16;
constexpr int TILE_N = 8, MAX_TILES = 2;
#if IS_INT8
typedef signed char Weight;
#else
typedef u16 Weight;
#endif
// Elements that a lane loads at once, and how many times eight of x go with them.
constexpr int PER_LANE = 16 / sizeof(Weight), PARTS = PER_LANE / 8;
// Elements of each row that a warp takes at a time: two cache lines of 128 bytes. Four lanes load side by side.
constexpr int VECTORS = 4, TILE_K = VECTORS * 4 * PER_LANE;
// Stages per warp, in registers: being loaded or being multiplied.
constexpr int NUM_STAGES = 3;

#if IS_INT8
// A code as a float, of four whose sign bits are flipped: 2^23 + 128 + code, and then less that.
DEVICE float code_of(u32 flipped, int place) {
    return __int_as_float((int)__byte_perm(flipped, 0x4b000000, 0x7650 + place)) - 8388736.f;
}
DEVICE uint2 floats_of(u32 codes) {
    u32 flipped = codes ^ 0x80808080;
    return make_uint2(pack(code_of(flipped, 0), code_of(flipped, 1)), pack(code_of(flipped, 2), code_of(flipped, 3)));
}
#endif

// Elements [k, k + TILE_K) of a group's tiles, in the registers of a warp: four lanes per row, each with vectors of
// PER_LANE elements.
struct WeightStage {
    uint4 vectors[MAX_TILES][VECTORS];

    // from: this lane's first element in the first tile.
    DEVICE void load(const Weight* from, i64 depth, int num_tiles) {
#pragma unroll
        for (int tile = 0; tile < MAX_TILES; tile++) {
            if (tile >= num_tiles) continue;
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                const Weight* at = from + tile * TILE_N * depth + 4 * PER_LANE * i;
                vectors[tile][i] = load_stream16(reinterpret_cast<const u16*>(at));
            }
        }
    }

    // Eight elements of a vector as 16-bit floats.
    DEVICE uint4 floats(int tile, int i, int part) const {
        const uint4& vector = vectors[tile][i];
#if IS_INT8
        uint2 low = floats_of(part ? vector.z : vector.x), high = floats_of(part ? vector.w : vector.y);
        return make_uint4(low.x, low.y, high.x, high.y);
#else
        return vector;
#endif
    }
};

// The same elements of x: rows lane / 4 and lane / 4 + 8, eight at a time.
struct InputFragment {
    uint4 vectors[2][VECTORS * PARTS];

    DEVICE void load(const u16* from, i64 depth, int num_rows) {
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
#pragma unroll
            for (int i = 0; i < VECTORS * PARTS; i++) {
                int at = i / PARTS * 4 * PER_LANE + i % PARTS * 8;
                vectors[upper][i] = make_uint4(0, 0, 0, 0);
                if (8 * upper < num_rows)
                    vectors[upper][i] = *reinterpret_cast<const uint4*>(from + 8 * upper * depth + at);
            }
        }
    }
};

typedef float Accumulators[MAX_TILES][4];

DEVICE void clear(Accumulators& acc) {
#pragma unroll
    for (int tile = 0; tile < MAX_TILES; tile++) acc[tile][0] = acc[tile][1] = acc[tile][2] = acc[tile][3] = 0.f;
}

DEVICE void mma_stage(Accumulators& acc, const WeightStage& stage, const InputFragment& input, int num_tiles) {
#pragma unroll
    for (int tile = 0; tile < MAX_TILES; tile++) {
        if (tile >= num_tiles) continue;
#pragma unroll
        for (int i = 0; i < VECTORS * PARTS; i++) {
            const uint4 w = stage.floats(tile, i / PARTS, i % PARTS);
            const uint4 &low = input.vectors[0][i], &high = input.vectors[1][i];
            mma_16x8x16(acc[tile], low.x, high.x, low.y, high.y, w.x, w.y);
            mma_16x8x16(acc[tile], low.z, high.z, low.w, high.w, w.z, w.w);
        }
    }
}

// The warps' partial sums of a group, double buffered: one is read while the next is written.
struct SharedStorage {
    float acc[2][NUM_WARPS][MAX_TILES][MAX_BATCH][TILE_N];
};

DEVICE void store_partials(float (&to)[MAX_TILES][MAX_BATCH][TILE_N], const Accumulators& acc, int num_tiles,
                           int lane) {
    int row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
    for (int tile = 0; tile < MAX_TILES; tile++) {
        if (tile >= num_tiles) continue;
        *reinterpret_cast<float2*>(&to[tile][row][column]) = make_float2(acc[tile][0], acc[tile][1]);
        *reinterpret_cast<float2*>(&to[tile][row + 8][column]) = make_float2(acc[tile][2], acc[tile][3]);
    }
}

// Sums over the warps, always in the same order, and writes the results.
DEVICE void epilogue(const float (&acc)[NUM_WARPS][MAX_TILES][MAX_BATCH][TILE_N], const float* scales, const u16* bias,
                     int batch, int first_row, int num_tiles, int num_out, u16* out) {
    int per_tile = batch * TILE_N;
    for (int item = threadIdx.x; item < num_tiles * per_tile; item += NUM_THREADS) {
        int tile = item / per_tile, row = item % per_tile / TILE_N, column = item % TILE_N;
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) sum += acc[warp][tile][row][column];
        int at = first_row + tile * TILE_N + column;
        if (scales) sum *= scales[at];
        if (bias) sum += widen(bias[at]);
        out[(i64)row * num_out + at] = (u16)pack(sum, 0.f);
    }
}

// The tiles of W of a block, in groups: as few groups as possible, of nearly equal size.
struct BlockTiles {
    int first, per_group, num_larger, num_groups;

    DEVICE BlockTiles(int num_out) {
        i64 tiles = num_out / TILE_N;
        first = (int)(blockIdx.x * tiles / gridDim.x);
        int in_block = (int)((blockIdx.x + 1) * tiles / gridDim.x) - first;
        num_groups = (in_block + MAX_TILES - 1) / MAX_TILES;
        per_group = in_block / max(1, num_groups);
        num_larger = in_block - per_group * num_groups;
    }
    DEVICE int begin(int group) const { return first + group * per_group + min(group, num_larger); }
    DEVICE int num_tiles(int group) const { return per_group + (group < num_larger); }
};

// The next work of a warp: the elements from k on of a group. Warps take turns along K.
struct WarpStep {
    int group, k;

    DEVICE void advance(int first_k, int depth) {
        k += NUM_WARPS * TILE_K;
        if (k >= depth) *this = {group + 1, first_k};
    }
};

// x: [batch, depth], batch at most 16, depth a multiple of TILE_K. weight: [num_out, depth], num_out a multiple of 8.
// scales: [num_out] of codes, otherwise null. bias: [num_out] or null. out: [batch, num_out].
extern "C" __global__ void __launch_bounds__(NUM_THREADS, 1)
    selfspan_linear(const u16* x, const Weight* weight, const float* scales, const u16* bias, int batch, int num_out,
                    int depth, u16* out) {
    __shared__ SharedStorage shared;
    launch_dependents();
    const int lane = lane_index(), warp = threadIdx.x / 32, first_k = warp * TILE_K;
    const BlockTiles block_tiles(num_out);
    const Weight* weight_at = weight + (i64)(lane / 4) * depth + PER_LANE * (lane % 4);
    const u16* x_at = x + (i64)(lane / 4) * depth + PER_LANE * (lane % 4);
    WarpStep step = {0, first_k}, prefetch = step;
    WeightStage stages[NUM_STAGES];
    auto load = [&](WeightStage& stage) {
        if (prefetch.group >= block_tiles.num_groups || prefetch.k >= depth) return;
        i64 row = (i64)block_tiles.begin(prefetch.group) * TILE_N;
        stage.load(weight_at + row * depth + prefetch.k, depth, block_tiles.num_tiles(prefetch.group));
        prefetch.advance(first_k, depth);
    };
#pragma unroll
    for (int i = 0; i < NUM_STAGES; i++) load(stages[i]);
    wait_for_prior_grids();
    Accumulators acc;
    clear(acc);
    // One stage; returns whether there was one.
    auto consume = [&](WeightStage& stage) {
        if (step.group >= block_tiles.num_groups) return false;
        int group = step.group, num_tiles = block_tiles.num_tiles(group);
        if (step.k < depth) {
            InputFragment input;
            input.load(x_at + step.k, depth, batch - lane / 4);
            mma_stage(acc, stage, input, num_tiles);
            load(stage);
        }
        step.advance(first_k, depth);
        if (step.group > group) {
            store_partials(shared.acc[group % 2][warp], acc, num_tiles, lane);
            __syncthreads();
            int first_row = block_tiles.begin(group) * TILE_N;
            epilogue(shared.acc[group % 2], scales, bias, batch, first_row, num_tiles, num_out, out);
            clear(acc);
        }
        return true;
    };
    bool more = true;
    while (more) {
#pragma unroll
        for (int i = 0; i < NUM_STAGES; i++) more = more && consume(stages[i]);
    }
}
