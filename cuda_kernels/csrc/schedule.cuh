// Who works on what: the tiles of all (row, key/value head) units lie behind one another on a line, and the line is cut
// into slices, one per warp: of as many tiles each, wherever units end, so that no mix of lengths leaves a
// multiprocessor without work. Only where all units are about as long, and their number suits that of the warps, whole
// units are dealt out, one or more to a warp, or so many parts of each that one block has them all.
#pragma once
#include <tile.cuh>

// A unit's stretch of the line is longer than its tiles by as many: taking one up costs about as much time.
constexpr int UNIT_COST_TILES = 1;

// A place on the line. Behind a unit's last tile, `tile` is not below their number.
struct Place {
    int row;
    int head;
    int tile;
};

// So many places from `from` on; if `step` is more than 1, only every `step`-th tile of them.
struct Slice {
    Place from;
    int length;
    int step = 1;
};

// The blocks that have a part of one unit: all from the first to the last.
struct Holders {
    int first, last;
};

// How whole units are dealt out: so many to a warp, or so many warps (which one block holds) to a unit. One of them
// is 1; both are 0 if units are cut anywhere.
struct Deal {
    int units, warps;
};

// What is dealt out keeps at least this share of the warps busy: the others' reads are not missed then.
constexpr float LEAST_BUSY = 0.55f;
// Places per warp up to which dealing pays. On longer lines the merges that it saves are nothing against the reads; and
// where all warps read the beginnings of units at the same time, then their middles, memory is 1-2 % slower.
constexpr int LONGEST_DEALT = 160;

DEVICE Deal choose_deal(int num_units, int num_warps, int length, int longest_unit) {
    if (length > LONGEST_DEALT * num_warps) return {0, 0};
    Deal deal = {(num_units + num_warps - 1) / num_warps, 1};
    // Units that are longer than others, by more than a tenth and two tiles, would be waited for; empty ones count.
    int longer = deal.units == 1 ? 2 : 0;
    if ((float)num_units * (longest_unit - longer) > 1.1f * length) return {0, 0};
    while (NUM_WARPS % (2 * deal.warps) == 0 && num_units * 2 * deal.warps <= num_warps) deal.warps *= 2;
    float busy = (float)num_units * deal.warps / deal.units;
    return busy >= LEAST_BUSY * num_warps ? deal : Deal{0, 0};
}

// The plan kernel makes it, for all layers, and every block of the attention kernel takes a copy. What is known of the
// rows lies right behind it. 31 bits are enough for every cache that fits a GPU; the launcher makes sure.
struct Line {
    int batch;
    int num_kv_heads;
    int num_blocks;  // of the attention kernel
    int length;
    Deal deal;
    // Of slices that are cut anywhere:
    int num_slices;      // none of them empty: one per warp of the grid, or fewer
    int per_slice;       // places of a slice, rounded down
    float left;          // places per slice that are left over then: they are spread
    float inverse_step;  // slices per place

    // start: [batch + 1] first place of each row, and the length of the line.
    DEVICE int* start() { return reinterpret_cast<int*>(this + 1); }
    DEVICE int* num_visible() { return start() + batch + 1; }
    DEVICE int* num_spans() { return num_visible() + batch; }
    DEVICE int start(int row) const { return const_cast<Line*>(this)->start()[row]; }
    DEVICE int num_visible(int row) const { return const_cast<Line*>(this)->num_visible()[row]; }
    DEVICE int num_spans(int row) const { return const_cast<Line*>(this)->num_spans()[row]; }
    // Where num_visible begins, and the length of all, in words.
    static DEVICE int visible_word(int batch) { return sizeof(Line) / 4 + batch + 1; }
    static DEVICE int num_words(int batch) { return visible_word(batch) + 2 * batch; }

    DEVICE int num_warps() const { return num_blocks * NUM_WARPS; }
    DEVICE int num_units() const { return batch * num_kv_heads; }

    DEVICE void divide(int longest_unit) {
        deal = choose_deal(num_units(), num_warps(), length, longest_unit);
        num_slices = max(1, min(num_warps(), length));
        per_slice = length / num_slices;
        left = (float)(length - num_slices * per_slice) / num_slices;
        inverse_step = (float)num_slices / length;
    }

    // What a warp works on; warps are numbered over all blocks.
    DEVICE Slice slice(int number) const {
        if (deal.warps) return dealt_slice(number / NUM_WARPS, number % NUM_WARPS);
        int begin = slice_begin(number);
        return begin < length ? Slice{place(begin), slice_begin(number + 1) - begin} : Slice{{0, 0, 0}, 0};
    }

    // First place of a slice that is cut anywhere; for slices behind the last, the end of the line.
    DEVICE int slice_begin(int number) const {
        return number >= num_slices ? length : number * per_slice + (int)(number * left);
    }

    // One block after the other gets its first, then its second ...: those that get one less are spread over the GPU.
    DEVICE Slice dealt_slice(int block, int warp) const {
        int turn = warp / deal.warps, part = warp % deal.warps, units = num_units();
        int unit = (turn * num_blocks + block) * deal.units;
        if (unit >= units) return {{0, 0, 0}, 0};
        int row = unit / num_kv_heads, head = unit - row * num_kv_heads;
        if (deal.warps > 1) {
            // Every so many-th tile: what a block reads lies together.
            int tiles = num_tiles(num_visible(row));
            return {{row, head, part}, max(0, tiles - part), deal.warps};
        }
        int behind = min(unit + deal.units, units), last_row = (behind - 1) / num_kv_heads;
        int end = unit_start(last_row, behind - last_row * num_kv_heads);
        return {{row, head, 0}, end - unit_start(row, head)};
    }

    // The block that holds a place, where units are cut anywhere.
    DEVICE int block_of(int place) const {
        int slice = min(num_slices - 1, (int)(place * inverse_step));
        // The guess may be off by one.
        if (place < slice_begin(slice)) slice--;
        if (place >= slice_begin(slice + 1)) slice++;
        return slice / NUM_WARPS;
    }

    DEVICE Holders holders_of(int row, int head) const {
        if (deal.warps) return {(int)blockIdx.x, (int)blockIdx.x};
        int first = unit_start(row, head), last = first + num_tiles(num_visible(row)) - 1;
        return {block_of(first), block_of(last)};
    }

    static DEVICE int num_tiles(int visible) { return (visible + TILE_TOKENS - 1) / TILE_TOKENS; }

    // Places of one unit of a row.
    static DEVICE int unit_length(int visible) { return visible == 0 ? 0 : num_tiles(visible) + UNIT_COST_TILES; }

    DEVICE int unit_start(int row, int head) const { return start(row) + head * unit_length(num_visible(row)); }

    // The row that holds a place before the end of the line; rows without tokens hold none.
    DEVICE int row_of(int place) const {
        int low = 0, high = batch;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (start(middle) <= place)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    DEVICE Place place(int at) const {
        int row = row_of(at);
        u32 unit = unit_length(num_visible(row)), inside = at - start(row);
        return {row, (int)(inside / unit), (int)(inside % unit)};
    }

    // Where the unit behind a place's begins; there is one.
    DEVICE Place next_unit(const Place& place) const {
        if (place.head + 1 < num_kv_heads) return {place.row, place.head + 1, 0};
        int row = place.row + 1;
        while (num_visible(row) == 0) row++;
        return {row, 0, 0};
    }
};
