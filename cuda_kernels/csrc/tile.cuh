// Tiles of keys and values in registers, laid out as the tensor cores want them, straight from global memory.
//
// A tile is TILE_TOKENS consecutive entries of the list of visible tokens, wherever each of them lies in the cache. All
// products have the tokens or the head's dimensions along the 16 rows and the group's heads along the 8 columns:
//   scores  [tokens x heads]   = keys [tokens x dims]    * queries [dims x heads]
//   sums    [dims x heads]    += values^T [dims x tokens] * weights [tokens x heads]
// The order of the summed-over dimension is free as long as both factors have the same, and so is the order of rows: it
// is chosen such that every load takes 16 neighbouring bytes, and eight lanes take a line of 128.
#pragma once
#include <table.cuh>

// Two sub-tiles of 16 tokens where a token is short, so that as many bytes are in flight.
constexpr int SUB_TILES = HEAD_DIM == 64 ? 2 : 1;
constexpr int TILE_TOKENS = 16 * SUB_TILES;
// 64 dimensions, 128 bytes of a token: 16 bytes for each of eight lanes, so that whole lines of memory are asked for.
// The 32 dimensions that remain of 96: 8 bytes each.
constexpr int PARTS = HEAD_DIM / 64;
constexpr bool HAS_HALF_PART = HEAD_DIM % 64 == 32;
// Rows of `sums` in sixteens.
constexpr int SUM_TILES = HEAD_DIM / 16;
// Heads in eights.
constexpr int HEAD_TILES = (GROUP + 7) / 8;

// Which part of a fragment a lane holds.
struct Lane {
    int index = lane_index();
    DEVICE int row() const { return index / 4; }
    DEVICE int column() const { return index % 4; }
    DEVICE bool is_odd_row() const { return index & 4; }
};

// The list entry that stands in row `row` + 8 * half of a sub-tile's scores and weights. Even rows hold the first eight
// entries: `score` says why.
DEVICE int entry_of_row(int row, int half) {
    return 8 * (row % 2) + 4 * half + row / 2;
}

// Keys of a sub-tile's entries 4 * i to 4 * i + 3 are loaded at once. Two neighbouring rows of lanes share a token: the
// even one has the first half of every part's dimensions, the odd one the second.
struct Keys {
    uint4 part[SUB_TILES][4][PARTS];
    uint2 half_part[SUB_TILES][4];

    // position: of tile entry `lane % TILE_TOKENS`.
    DEVICE void load(const u16* keys, i64 stride, int position, Lane lane) {
        int eighth = lane.index % 8;
#pragma unroll
        for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = __shfl_sync(FULL_WARP, position, 16 * sub + 4 * i + lane.row() / 2);
                const u16* key = keys + at * stride;
#pragma unroll
                for (int p = 0; p < PARTS; p++) part[sub][i][p] = load_stream16(key + 64 * p + 8 * eighth);
                if (HAS_HALF_PART) half_part[sub][i] = load_stream8(key + 64 * PARTS + 4 * eighth);
            }
        }
    }
};

struct Values {
    uint4 part[SUB_TILES][4][PARTS];
    uint2 half_part[SUB_TILES][4];

    // Four entries, those of rows 2 * lane.column(), + 1, + 8 and + 9, for each lane.
    DEVICE void load(const u16* values, i64 stride, int position, Lane lane) {
#pragma unroll
        for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int entry = 16 * sub + entry_of_row(2 * lane.column() + i % 2, i / 2);
                int at = __shfl_sync(FULL_WARP, position, entry);
                const u16* value = values + at * stride;
#pragma unroll
                for (int p = 0; p < PARTS; p++) part[sub][i][p] = load_stream16(value + 64 * p + 8 * lane.row());
                if (HAS_HALF_PART) half_part[sub][i] = load_stream8(value + 64 * PARTS + 4 * lane.row());
            }
        }
    }
};

// Of head lane.row() of every eight: the dimensions that keys have in lanes of the same column, in even and odd rows.
struct Queries {
    uint4 part[HEAD_TILES][PARTS][2];
    uint2 half_part[HEAD_TILES][2];

    // queries: of the group's first head; heads that the group does not have are zero.
    DEVICE void load(const u16* queries, i64 stride, Lane lane) {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++) {
            int head = 8 * tile + lane.row();
            // The last head stands for those: a branch here would be taken up by all that follows.
            const u16* query = queries + min(head, GROUP - 1) * stride;
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    uint4 loaded = load_stream16(query + 64 * p + 32 * odd + 8 * lane.column());
                    part[tile][p][odd] = head < GROUP ? loaded : make_uint4(0, 0, 0, 0);
                }
                if (HAS_HALF_PART) {
                    uint2 loaded = load_stream8(query + 64 * PARTS + 16 * odd + 4 * lane.column());
                    half_part[tile][odd] = head < GROUP ? loaded : make_uint2(0, 0);
                }
            }
        }
    }
};

// scores[sub][tile]: entries of rows lane.row() and + 8, head columns 2 * lane.column() and + 1.
typedef float Scores[SUB_TILES][HEAD_TILES][4];

// Sixteen rows of eight entries, 8 * eight and behind, times the queries of even or odd rows' dimensions.
DEVICE void multiply_keys(float (&d)[4], const Keys& keys, const Queries& queries, int sub, int tile, int eight,
                          int odd) {
    d[0] = d[1] = d[2] = d[3] = 0.f;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const uint4 &upper = keys.part[sub][2 * eight][p], &lower = keys.part[sub][2 * eight + 1][p];
        const uint4& query = queries.part[tile][p][odd];
        multiply_add(d, upper.x, lower.x, upper.y, lower.y, query.x, query.y);
        multiply_add(d, upper.z, lower.z, upper.w, lower.w, query.z, query.w);
    }
    if (HAS_HALF_PART) {
        const uint2 &upper = keys.half_part[sub][2 * eight], &lower = keys.half_part[sub][2 * eight + 1];
        const uint2& query = queries.half_part[tile][odd];
        multiply_add(d, upper.x, lower.x, upper.y, lower.y, query.x, query.y);
    }
}

// Each product is right in every second row only, and there it is the sum over half of the dimensions; the
// neighbouring row has the other half. Tensor cores have time for that; memory likes whole lines better. Of what two
// rows have in common afterwards, the even one keeps the first eight entries and the odd one the others.
DEVICE void score(Scores& scores, const Keys& keys, const Queries& queries, Lane lane) {
#pragma unroll
    for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
        for (int tile = 0; tile < HEAD_TILES; tile++) {
            float d[2][2][4];  // [eight][odd]
#pragma unroll
            for (int i = 0; i < 4; i++) multiply_keys(d[i / 2][i % 2], keys, queries, sub, tile, i / 2, i % 2);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float mine = lane.is_odd_row() ? d[1][1][i] : d[0][0][i];
                float others = lane.is_odd_row() ? d[0][1][i] : d[1][0][i];
                scores[sub][tile][i] = mine + __shfl_xor_sync(FULL_WARP, others, 4);
            }
        }
    }
}

// sums[tile][m]: head columns as in scores; the rows are dimensions, `dimension_of` says which.
typedef float Sums[HEAD_TILES][SUM_TILES][4];

// Dimension of row lane.row() (half = 0) or lane.row() + 8 (half = 1) of sum tile m. A lane's dimensions of one part
// lie side by side: that is how it loaded them.
DEVICE int dimension_of(int m, int half, Lane lane) {
    if (m < 4 * PARTS) return 64 * (m / 4) + 8 * lane.row() + m % 4 + 4 * half;
    return 64 * PARTS + 4 * lane.row() + m % 4 + 2 * half;
}

DEVICE u32 element_pair(u32 a, u32 b, int element) {
    return element % 2 == 0 ? lower_halves(a, b) : upper_halves(a, b);
}

// sums += values^T * weights for one sub-tile and one tile of heads; weights as two registers of the second factor.
DEVICE void accumulate(float (&sums)[SUM_TILES][4], const Values& values, int sub, u32 weights0, u32 weights1) {
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const u32* v0 = &values.part[sub][0][p].x;
        const u32* v1 = &values.part[sub][1][p].x;
        const u32* v2 = &values.part[sub][2][p].x;
        const u32* v3 = &values.part[sub][3][p].x;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int near = e / 2, far = e / 2 + 2;
            multiply_add(sums[4 * p + e], element_pair(v0[near], v1[near], e), element_pair(v0[far], v1[far], e),
                         element_pair(v2[near], v3[near], e), element_pair(v2[far], v3[far], e), weights0, weights1);
        }
    }
    if (HAS_HALF_PART) {
        const uint2(&v)[4] = values.half_part[sub];
#pragma unroll
        for (int e = 0; e < 2; e++)
            multiply_add(sums[4 * PARTS + e], element_pair(v[0].x, v[1].x, e), element_pair(v[0].y, v[1].y, e),
                         element_pair(v[2].x, v[3].x, e), element_pair(v[2].y, v[3].y, e), weights0, weights1);
    }
}
