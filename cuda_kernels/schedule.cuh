// Who works on what: the tiles of all (row, key/value head) units lie behind one another on a line, and the line is cut
// into slices, one per warp: of as many tiles each, wherever units end, so that no mix of lengths leaves a
// multiprocessor without work. Only where all units are about as long, and there are as many of them or a few times
// fewer than warps, whole units are dealt out, or so many parts of each that one block has them all.
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

// How whole units are dealt out: so many to a warp, or so many warps (which one block holds) to a unit. One of them
// is 1; both are 0 if units are cut anywhere.
struct Deal {
    int units, warps;
};

// What is dealt out keeps at least this share of the warps busy: the others' reads are not missed then.
constexpr int LEAST_BUSY_PERCENT = 55;

DEVICE Deal choose_deal(int num_units, int num_warps, int length, int longest_unit) {
    // Units that are longer than others, by more than a tenth and two tiles, would be waited for.
    if (num_units * (i64)(longest_unit - 2) > length * (i64)11 / 10) return {0, 0};
    Deal deal = {(num_units + num_warps - 1) / num_warps, 1};
    while (NUM_WARPS % (2 * deal.warps) == 0 && num_units * 2 * deal.warps <= num_warps) deal.warps *= 2;
    i64 busy = (i64)num_units * deal.warps / deal.units;
    return 100 * busy >= (i64)LEAST_BUSY_PERCENT * num_warps ? deal : Deal{0, 0};
}

// One for all threads of a block. 31 bits are enough for every cache that fits a GPU; the launcher makes sure.
struct Line {
    Rows rows;
    int batch;
    int num_kv_heads;
    int length;
    Deal deal;
    // Of slices that are cut anywhere:
    int num_slices;      // none of them empty: one per warp of the grid, or fewer
    int per_slice;       // places of a slice, rounded down
    float left;          // places per slice that are left over then: they are spread
    float inverse_step;  // slices per place

    Line() = default;
    DEVICE Line(const Rows& laid_out, int batch_size, int heads, int num_warps, int longest_unit) {
        rows = laid_out;
        batch = batch_size;
        num_kv_heads = heads;
        length = rows.start[batch];
        deal = choose_deal(batch * heads, num_warps, length, longest_unit);
        num_slices = max(1, min(num_warps, length));
        per_slice = length / num_slices;
        left = (float)(length % num_slices) / (float)num_slices;
        inverse_step = (float)num_slices / (float)length;
    }

    // First place of a slice; for slices behind the last, the end of the line.
    DEVICE int slice_begin(int slice) const {
        if (deal.warps) return dealt_begin(slice);
        if (slice >= num_slices) return length;
        return slice * per_slice + (int)(slice * left);
    }

    DEVICE int dealt_begin(int slice) const {
        int unit = slice / deal.warps * deal.units, part = slice % deal.warps;
        if (unit >= batch * num_kv_heads) return length;
        int row = unit / num_kv_heads;
        return unit_start(row, unit % num_kv_heads) + num_tiles(rows.num_visible[row]) * part / deal.warps;
    }

    // The block that holds a place, where units are cut anywhere.
    DEVICE int block_of(int place) const {
        int slice = min(num_slices - 1, (int)(place * inverse_step));
        // The guess may be off by one.
        if (place < slice_begin(slice)) slice--;
        if (place >= slice_begin(slice + 1)) slice++;
        return slice / NUM_WARPS;
    }

    DEVICE Blocks blocks_of(int row, int head) const {
        if (deal.warps) return {(int)blockIdx.x, (int)blockIdx.x};
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
