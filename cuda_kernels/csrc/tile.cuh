// Tiles of keys and values in registers, in the fragment layout of mma.m16n8k16, loaded straight from global memory.
//
// A tile is TILE_TOKENS consecutive entries of the list of visible tokens, wherever each of them lies in the cache. In
// both matrix products M = 16 is tokens or head dimensions and N = 8 is columns (columns.cuh): the queries and
// heads that share these keys:
//   scores [tokens x columns]  = keys [tokens x dims]     * queries [dims x columns]
//   acc    [dims x columns]   += values^T [dims x tokens] * weights [tokens x columns]
// The order of the summed dimension is free as long as both factors agree, and so is the order of rows: both are chosen
// such that every load takes 16 contiguous bytes, and eight lanes together a cache line of 128.
#pragma once
#include <table.cuh>

// Two sub-tiles of 16 tokens where a token is short, so that as many bytes are in flight.
constexpr int SUB_TILES = HEAD_DIM == 64 ? 2 : 1;
constexpr int TILE_TOKENS = 16 * SUB_TILES;
// A chunk is 64 dimensions, 128 bytes of a token: 16 bytes for each of eight lanes, a whole cache line. Of HEAD_DIM 96,
// the half chunk of 32 dimensions remains: 8 bytes each.
constexpr int CHUNKS = HEAD_DIM / 64;
constexpr bool HAS_HALF_CHUNK = HEAD_DIM % 64 == 32;
// Tiles of 16 rows of `acc`.
constexpr int ACC_TILES = HEAD_DIM / 16;
// Tiles of 8 columns.
constexpr int COLUMN_TILES = (COLUMNS + 7) / 8;

// Which part of a fragment a lane holds.
struct Lane {
    int index = lane_index();
    DEVICE int row() const { return index / 4; }
    DEVICE int column() const { return index % 4; }
    DEVICE bool is_odd_row() const { return index & 4; }
};

// With many columns the lane is read again at every use, so that nothing that follows from it takes up registers
// between.
DEVICE Lane again(Lane lane) {
    return IS_WIDE ? Lane() : lane;
}

// The list entry that stands in row `row` + 8 * half of a sub-tile's scores and weights. Even rows hold the first eight
// entries: `compute_scores` says why.
DEVICE int entry_of_row(int row, int half) {
    return 8 * (row % 2) + 4 * half + row / 2;
}

// Entries 4 * i to 4 * i + 3 of a sub-tile are loaded at once. Two neighbouring rows of lanes share a token: the even
// one has the first half of every chunk's dimensions, the odd one the second.
struct KeyFragment {
    uint4 chunk[SUB_TILES][4][CHUNKS];
    uint2 half_chunk[SUB_TILES][4];

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
                for (int p = 0; p < CHUNKS; p++) chunk[sub][i][p] = load_stream16(key + 64 * p + 8 * eighth);
                if (HAS_HALF_CHUNK) half_chunk[sub][i] = load_stream8(key + 64 * CHUNKS + 4 * eighth);
            }
        }
    }
};

struct ValueFragment {
    uint4 chunk[SUB_TILES][4][CHUNKS];
    uint2 half_chunk[SUB_TILES][4];

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
                for (int p = 0; p < CHUNKS; p++) chunk[sub][i][p] = load_stream16(value + 64 * p + 8 * lane.row());
                if (HAS_HALF_CHUNK) half_chunk[sub][i] = load_stream8(value + 64 * CHUNKS + 4 * lane.row());
            }
        }
    }
};

// Of column lane.row() of every eight: the dimensions that the keys have in lanes of the same column, in even and odd
// rows.
struct QueryTile {
    uint4 chunk[CHUNKS][2];
    uint2 half_chunk[2];

    // query_at: column -> its query. Columns that there are not are zero.
    template <class QueryAt>
    DEVICE void load(QueryAt query_at, int tile, Lane lane) {
        int column = 8 * tile + lane.row();
        // Missing columns load the last one: a branch would duplicate all the code behind it.
        const u16* query = query_at(min(column, COLUMNS - 1));
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
#pragma unroll
            for (int p = 0; p < CHUNKS; p++) {
                uint4 loaded = load_stream16(query + 64 * p + 32 * odd + 8 * lane.column());
                chunk[p][odd] = column < COLUMNS ? loaded : make_uint4(0, 0, 0, 0);
            }
            if (HAS_HALF_CHUNK) {
                uint2 loaded = load_stream8(query + 64 * CHUNKS + 16 * odd + 4 * lane.column());
                half_chunk[odd] = column < COLUMNS ? loaded : make_uint2(0, 0);
            }
        }
    }

    DEVICE uint4 of_chunk(int p, int odd) const { return chunk[p][odd]; }
    DEVICE uint2 of_half_chunk(int odd) const { return half_chunk[odd]; }
};

struct QueryFragment {
    QueryTile tiles[COLUMN_TILES];

    DEVICE QueryFragment(float*, Lane) {}  // takes no memory

    template <class QueryAt>
    DEVICE void load(QueryAt query_at, Lane lane) {
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) tiles[tile].load(query_at, tile, lane);
    }
    DEVICE const QueryTile& tile(int tile) const { return tiles[tile]; }
};

// The same in shared memory. Every lane reads what it has written itself; 32 lanes' vectors lie side by side, so that
// no two lanes that are served together meet in a bank.
struct SharedQueryTile {
    static constexpr int VECTORS = 2 * CHUNKS + HAS_HALF_CHUNK;
    uint4* vectors;  // this lane's, every 32nd

    DEVICE void store(const QueryTile& tile) const {
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++) vectors[32 * i] = tile.chunk[i / 2][i % 2];
        if (HAS_HALF_CHUNK)
            vectors[64 * CHUNKS] =
                make_uint4(tile.half_chunk[0].x, tile.half_chunk[0].y, tile.half_chunk[1].x, tile.half_chunk[1].y);
    }
    DEVICE uint4 of_chunk(int p, int odd) const { return vectors[32 * (2 * p + odd)]; }
    DEVICE uint2 of_half_chunk(int odd) const { return reinterpret_cast<const uint2*>(vectors + 64 * CHUNKS)[odd]; }
};

struct SharedQueries {
    static constexpr int VECTORS = COLUMN_TILES * SharedQueryTile::VECTORS;  // of a lane
    uint4* vectors;

    DEVICE SharedQueries(float* memory, Lane lane) : vectors(reinterpret_cast<uint4*>(memory) + lane.index) {}
    template <class QueryAt>
    DEVICE void load(QueryAt query_at, Lane lane) const {
#pragma unroll
        for (int i = 0; i < COLUMN_TILES; i++) {
            QueryTile loaded;
            loaded.load(query_at, i, lane);
            tile(i).store(loaded);
        }
    }
    DEVICE SharedQueryTile tile(int tile) const { return {vectors + 32 * SharedQueryTile::VECTORS * tile}; }
};

template <bool IN_SHARED>
struct ChooseQueries {
    typedef QueryFragment Type;
};
template <>
struct ChooseQueries<true> {
    typedef SharedQueries Type;
};
typedef ChooseQueries<IS_WIDE>::Type Queries;

// scores[sub][tile]: entries of rows lane.row() and + 8, columns 8 * tile + 2 * lane.column() and + 1.
typedef float Scores[SUB_TILES][COLUMN_TILES][4];

// Entries 8 * eight and the following seven, times the queries of the dimensions of even or odd rows.
template <class Tile>
DEVICE void mma_keys(float (&d)[4], const KeyFragment& keys, const Tile& queries, int sub, int eight, int odd) {
    d[0] = d[1] = d[2] = d[3] = 0.f;
#pragma unroll
    for (int p = 0; p < CHUNKS; p++) {
        const uint4 &upper = keys.chunk[sub][2 * eight][p], &lower = keys.chunk[sub][2 * eight + 1][p];
        const uint4 query = queries.of_chunk(p, odd);
        mma_16x8x16(d, upper.x, lower.x, upper.y, lower.y, query.x, query.y);
        mma_16x8x16(d, upper.z, lower.z, upper.w, lower.w, query.z, query.w);
    }
    if (HAS_HALF_CHUNK) {
        const uint2 &upper = keys.half_chunk[sub][2 * eight], &lower = keys.half_chunk[sub][2 * eight + 1];
        const uint2 query = queries.of_half_chunk(odd);
        mma_16x8x16(d, upper.x, lower.x, upper.y, lower.y, query.x, query.y);
    }
}

// Each mma is valid in every second row only, and there it sums half of the dimensions; the neighbouring row has the
// other half. The tensor cores have time for that, and whole cache lines make memory faster. When the two rows add
// their halves, the even one keeps the first eight entries and the odd one the others.
DEVICE void compute_scores(Scores& scores, const KeyFragment& keys, const Queries& queries, Lane lane) {
#pragma unroll
    for (int sub = 0; sub < SUB_TILES; sub++) {
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
            float d[2][2][4];  // [eight][odd]
#pragma unroll
            for (int i = 0; i < 4; i++) mma_keys(d[i / 2][i % 2], keys, queries.tile(tile), sub, i / 2, i % 2);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float mine = lane.is_odd_row() ? d[1][1][i] : d[0][0][i];
                float others = lane.is_odd_row() ? d[0][1][i] : d[1][0][i];
                scores[sub][tile][i] = mine + __shfl_xor_sync(FULL_WARP, others, 4);
            }
        }
    }
}

// acc[tile][m]: columns as in scores; rows are dimensions, see `dimension_of`.
typedef float Accumulators[COLUMN_TILES][ACC_TILES][4];

// Dimension of row lane.row() (half = 0) or lane.row() + 8 (half = 1) of accumulator tile m. A lane's dimensions of a
// chunk are contiguous, as it loaded them.
DEVICE int dimension_of(int m, int half, Lane lane) {
    if (m < 4 * CHUNKS) return 64 * (m / 4) + 8 * lane.row() + m % 4 + 4 * half;
    return 64 * CHUNKS + 4 * lane.row() + m % 4 + 2 * half;
}

DEVICE u32 element_pair(u32 a, u32 b, int element) {
    return element % 2 == 0 ? lower_halves(a, b) : upper_halves(a, b);
}

// acc += values^T * weights for one sub-tile and one tile of columns; weights as the two registers of factor b.
DEVICE void mma_values(float (&acc)[ACC_TILES][4], const ValueFragment& values, int sub, u32 weights0, u32 weights1) {
#pragma unroll
    for (int p = 0; p < CHUNKS; p++) {
        const u32* v0 = &values.chunk[sub][0][p].x;
        const u32* v1 = &values.chunk[sub][1][p].x;
        const u32* v2 = &values.chunk[sub][2][p].x;
        const u32* v3 = &values.chunk[sub][3][p].x;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int near = e / 2, far = e / 2 + 2;
            mma_16x8x16(acc[4 * p + e], element_pair(v0[near], v1[near], e), element_pair(v0[far], v1[far], e),
                        element_pair(v2[near], v3[near], e), element_pair(v2[far], v3[far], e), weights0, weights1);
        }
    }
    if (HAS_HALF_CHUNK) {
        const uint2(&v)[4] = values.half_chunk[sub];
#pragma unroll
        for (int e = 0; e < 2; e++)
            mma_16x8x16(acc[4 * CHUNKS + e], element_pair(v[0].x, v[1].x, e), element_pair(v[0].y, v[1].y, e),
                        element_pair(v[2].x, v[3].x, e), element_pair(v[2].y, v[3].y, e), weights0, weights1);
    }
}
