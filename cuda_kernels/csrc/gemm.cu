// x W^T for a batch of at most 16 rows: its time is that of reading W once, and to come near it.
//
// As many blocks as multiprocessors; each has its share of W's rows, in units of 8 that are the columns of a product of
// the tensor cores, with the batch along the 16 rows. The warps of a block take turns along the rows of a few units, so
// that what a block reads lies together. The order of the summed-over dimension is free, and is chosen such that every
// lane loads 16 neighbouring bytes. Nothing of W depends on what runs before: its first tiles are on their way while
// that is not yet done.
//
// Injected: IS_BF16 (else fp16).
#include <ptx.cuh>

constexpr int NUM_WARPS = 8, NUM_THREADS = 32 * NUM_WARPS;
constexpr int MAX_BATCH = 16;
constexpr int UNIT_ROWS = 8, MAX_UNITS = 2;
// Elements of every row that a warp takes at a time: two lines of 128 bytes. Four lanes take 32 of them at once.
constexpr int STEP = 128, RUNS = STEP / 32;
// Tiles of a warp that are on their way or worked on.
constexpr int NUM_TILES = 3;

// A few units' elements [k, k + STEP), in the registers of a warp: four lanes to a row of each unit, each with runs of
// eight elements.
struct Tile {
    uint4 run[MAX_UNITS][RUNS];

    // from: this lane's first element of the first unit.
    DEVICE void load(const u16* from, i64 depth, int num_units) {
#pragma unroll
        for (int unit = 0; unit < MAX_UNITS; unit++) {
            if (unit >= num_units) continue;
#pragma unroll
            for (int i = 0; i < RUNS; i++) run[unit][i] = load_stream16(from + unit * UNIT_ROWS * depth + 32 * i);
        }
    }
};

// The same of the batch: rows lane / 4 and 8 behind it.
struct Inputs {
    uint4 run[2][RUNS];

    DEVICE void load(const u16* from, i64 depth, int num_rows) {
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
#pragma unroll
            for (int i = 0; i < RUNS; i++) {
                run[upper][i] = make_uint4(0, 0, 0, 0);
                if (8 * upper < num_rows)
                    run[upper][i] = *reinterpret_cast<const uint4*>(from + 8 * upper * depth + 32 * i);
            }
        }
    }
};

typedef float Sums[MAX_UNITS][4];

DEVICE void clear(Sums& sums) {
#pragma unroll
    for (int unit = 0; unit < MAX_UNITS; unit++) sums[unit][0] = sums[unit][1] = sums[unit][2] = sums[unit][3] = 0.f;
}

DEVICE void multiply(Sums& sums, const Tile& tile, const Inputs& inputs, int num_units) {
#pragma unroll
    for (int unit = 0; unit < MAX_UNITS; unit++) {
        if (unit >= num_units) continue;
#pragma unroll
        for (int i = 0; i < RUNS; i++) {
            const uint4 &w = tile.run[unit][i], &low = inputs.run[0][i], &high = inputs.run[1][i];
            multiply_add(sums[unit], low.x, high.x, low.y, high.y, w.x, w.y);
            multiply_add(sums[unit], low.z, high.z, low.w, high.w, w.z, w.w);
        }
    }
}

// What the warps of a block have summed up of their turns, twice: one is read while the next is written.
struct Shared {
    float sums[2][NUM_WARPS][MAX_UNITS][MAX_BATCH][UNIT_ROWS];
};

DEVICE void store(float (&to)[MAX_UNITS][MAX_BATCH][UNIT_ROWS], const Sums& sums, int num_units, int lane) {
    int row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
    for (int unit = 0; unit < MAX_UNITS; unit++) {
        if (unit >= num_units) continue;
        *reinterpret_cast<float2*>(&to[unit][row][column]) = make_float2(sums[unit][0], sums[unit][1]);
        *reinterpret_cast<float2*>(&to[unit][row + 8][column]) = make_float2(sums[unit][2], sums[unit][3]);
    }
}

// The sum over warps, always in the same order, to the results.
DEVICE void write(const float (&sums)[NUM_WARPS][MAX_UNITS][MAX_BATCH][UNIT_ROWS], const u16* bias, int batch,
                  int first_row, int num_units, int num_out, u16* out) {
    int per_unit = batch * UNIT_ROWS;
    for (int item = threadIdx.x; item < num_units * per_unit; item += NUM_THREADS) {
        int unit = item / per_unit, row = item % per_unit / UNIT_ROWS, column = item % UNIT_ROWS;
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) sum += sums[warp][unit][row][column];
        int at = first_row + unit * UNIT_ROWS + column;
        if (bias) sum += widen(bias[at]);
        out[(i64)row * num_out + at] = (u16)pack(sum, 0.f);
    }
}

// Which rows of W a block has, in groups of a few units: as few groups as can be, of nearly as many units each.
struct Share {
    int first, in_group, larger, num_groups;

    DEVICE Share(int num_out) {
        i64 units = num_out / UNIT_ROWS;
        first = (int)(blockIdx.x * units / gridDim.x);
        int in_block = (int)((blockIdx.x + 1) * units / gridDim.x) - first;
        num_groups = (in_block + MAX_UNITS - 1) / MAX_UNITS;
        in_group = in_block / max(1, num_groups);
        larger = in_block - in_group * num_groups;
    }
    DEVICE int begin(int group) const { return first + group * in_group + min(group, larger); }
    DEVICE int num_units(int group) const { return in_group + (group < larger); }
};

// What a warp takes next: of a group, the elements from k on. Warps take turns.
struct Turn {
    int group, k;

    DEVICE void advance(int first_k, int depth) {
        k += NUM_WARPS * STEP;
        if (k >= depth) *this = {group + 1, first_k};
    }
};

// x: [batch, depth], batch at most 16, depth a multiple of STEP. weight: [num_out, depth], num_out a multiple of 8.
// bias: [num_out] or null. out: [batch, num_out].
extern "C" __global__ void __launch_bounds__(NUM_THREADS, 1)
    selfspan_linear(const u16* x, const u16* weight, const u16* bias, int batch, int num_out, int depth, u16* out) {
    __shared__ Shared shared;
    let_next_start();
    const int lane = lane_index(), warp = threadIdx.x / 32, first_k = warp * STEP;
    const Share share(num_out);
    const u16* weight_at = weight + (i64)(lane / 4) * depth + 8 * (lane % 4);
    const u16* x_at = x + (i64)(lane / 4) * depth + 8 * (lane % 4);
    Turn turn = {0, first_k}, ahead = turn;
    Tile tiles[NUM_TILES];
    auto load = [&](Tile& tile) {
        if (ahead.group >= share.num_groups || ahead.k >= depth) return;
        i64 row = (i64)share.begin(ahead.group) * UNIT_ROWS;
        tile.load(weight_at + row * depth + ahead.k, depth, share.num_units(ahead.group));
        ahead.advance(first_k, depth);
    };
#pragma unroll
    for (int i = 0; i < NUM_TILES; i++) load(tiles[i]);
    wait_for_inputs();
    Sums sums;
    clear(sums);
    // One turn; whether there was one.
    auto take = [&](Tile& tile) {
        if (turn.group >= share.num_groups) return false;
        int group = turn.group, num_units = share.num_units(group);
        if (turn.k < depth) {
            Inputs inputs;
            inputs.load(x_at + turn.k, depth, batch - lane / 4);
            multiply(sums, tile, inputs, num_units);
            load(tile);
        }
        turn.advance(first_k, depth);
        if (turn.group > group) {
            store(shared.sums[group % 2][warp], sums, num_units, lane);
            __syncthreads();
            write(shared.sums[group % 2], bias, batch, share.begin(group) * UNIT_ROWS, num_units, num_out, out);
            clear(sums);
        }
        return true;
    };
    bool more = true;
    while (more) {
#pragma unroll
        for (int i = 0; i < NUM_TILES; i++) more = more && take(tiles[i]);
    }
}
