// Who works on what: the tiles of all (row, key/value head) units lie behind one another on a line, and the line is cut
// into slices of as many tiles, one per warp. So no mix of lengths leaves a multiprocessor without work, and all are
// done at about the same time.
#pragma once
#include <tile.cuh>

// A unit's stretch of the line is longer than its tiles by as many: taking one up costs about as much time.
#ifndef UNIT_COST_TILES
#define UNIT_COST_TILES 1
#endif

// A place on the line. Behind a unit's last tile, `tile` is not below their number.
struct Place {
    int row;
    int head;
    int tile;
};

// Rows as all threads of a block see them, in shared memory.
struct Rows {
    int* start;        // [batch + 1] first place of each row, and the length of the line
    int* num_visible;  // [batch]
    int* num_spans;    // [batch]
};

// Blocks that hold a part of one unit: all from the first to the last.
struct Blocks {
    int first, last;
};

// One for all threads of a block. 31 bits are enough for every cache that fits a GPU; the launcher makes sure.
struct Line {
    Rows rows;
    int batch;
    int num_kv_heads;
    int length;
    int num_slices;  // none of them empty: one per warp of the grid, or fewer
    int per_slice;   // places of a slice, rounded down
    int left;        // places that are left over then; they are spread

    Line() = default;
    DEVICE Line(const Rows& laid_out, int batch_size, int heads, int num_warps) {
        rows = laid_out;
        batch = batch_size;
        num_kv_heads = heads;
        length = rows.start[batch];
        num_slices = max(1, min(num_warps, length));
        per_slice = length / num_slices;
        left = length % num_slices;
    }

    // First place of a slice; for slices behind the last, the end of the line.
    DEVICE int slice_begin(int slice) const {
        if (slice >= num_slices) return length;
        return slice * per_slice + (u32)(slice * left) / (u32)num_slices;
    }

    // The block that holds a place.
    DEVICE int block_of(int place) const {
        int slice = min(num_slices - 1, (int)(place * ((float)num_slices / (float)length)));
        // The guess may be off by one.
        if (place < slice_begin(slice)) slice--;
        if (place >= slice_begin(slice + 1)) slice++;
        return slice / NUM_WARPS;
    }

    DEVICE Blocks blocks_of(int row, int head) const {
        int start = unit_start(row, head);
        return {block_of(start), block_of(start + num_tiles(rows.num_visible[row]) - 1)};
    }

    static DEVICE int num_tiles(int visible) { return (visible + TILE_TOKENS - 1) / TILE_TOKENS; }

    // Places of one unit of a row.
    static DEVICE int unit_length(int visible) { return visible == 0 ? 0 : num_tiles(visible) + UNIT_COST_TILES; }

    DEVICE int unit_start(int row, int head) const {
        return rows.start[row] + head * unit_length(rows.num_visible[row]);
    }

    // The row that holds a place before the end of the line; rows without tokens hold none.
    DEVICE int row_of(int place) const {
        int low = 0, high = batch;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (rows.start[middle] <= place)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    DEVICE Place place(int at) const {
        int row = row_of(at);
        u32 unit = unit_length(rows.num_visible[row]), inside = at - rows.start[row];
        return {row, (int)(inside / unit), (int)(inside % unit)};
    }

    // Where the unit behind a place's begins; there is one.
    DEVICE Place next_unit(const Place& place) const {
        if (place.head + 1 < num_kv_heads) return {place.row, place.head + 1, 0};
        int row = place.row + 1;
        while (rows.num_visible[row] == 0) row++;
        return {row, 0, 0};
    }
};
