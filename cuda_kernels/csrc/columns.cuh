// Columns of the tiles: one per query of a row and query head of a group, all of which read the same keys and values.
//
// A warp serves MAX_COLUMNS of them at most: 32, or 16 where few row-heads are split among many blocks, since every
// split leaves a partial result of all its columns. Where a row has more, its queries are divided into column blocks,
// as equal as possible. The schedule knows nothing of them: it is made for a grid of "work blocks", each of which is
// COLUMN_BLOCKS neighbouring thread blocks that read the same tokens at the same time, one for each column block. So
// memory is read once, and the second-level cache COLUMN_BLOCKS times.
#pragma once
#include <ptx.cuh>

#ifndef MAX_COLUMNS
#define MAX_COLUMNS 32
#endif
constexpr int MAX_QUERIES_PER_BLOCK = MAX_COLUMNS / GROUP;
constexpr int COLUMN_BLOCKS = (NUM_QUERIES + MAX_QUERIES_PER_BLOCK - 1) / MAX_QUERIES_PER_BLOCK;
// Queries of a column block; the last one may have fewer.
constexpr int QUERIES = (NUM_QUERIES + COLUMN_BLOCKS - 1) / COLUMN_BLOCKS;
constexpr int COLUMNS = GROUP * QUERIES;
// More than two tiles of columns: the registers hold their sums and nothing else of them, and shared memory has room
// for one partial result per warp only.
constexpr bool IS_WIDE = COLUMNS > 16;
// Whether queries of a row see different tokens.
constexpr bool IS_MASKED = NUM_QUERIES > 1;

// The query of a column, counted from the column block's first one, and its head in the group.
DEVICE int query_of(int column) {
    return QUERIES == 1 ? 0 : column / GROUP;
}
DEVICE int head_of(int column) {
    return QUERIES == 1 ? column : column % GROUP;
}

// The work block and the column block of this thread block.
DEVICE int work_block() {
    return (int)blockIdx.x / COLUMN_BLOCKS;
}
DEVICE int column_block() {
    return (int)blockIdx.x % COLUMN_BLOCKS;
}
DEVICE int first_query() {
    return QUERIES * column_block();
}
// Whether a column of this column block is a query that there is; the last block may have fewer.
DEVICE bool is_query(int column) {
    return column < COLUMNS &&
           (QUERIES * COLUMN_BLOCKS == NUM_QUERIES || first_query() + query_of(column) < NUM_QUERIES);
}
