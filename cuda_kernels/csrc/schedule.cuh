// The assignment of tokens to warps. Every (row, key/value head) pair, a "row-head", is a sequence of tiles; all of
// them behind one another make a linear work space, in the manner of stream-K (Osama et al., arXiv 2301.03598). It is
// cut into equal ranges, one per warp, wherever row-heads end: no mix of lengths leaves a multiprocessor idle. A
// row-head that spans several ranges is split (split-KV), and its splits are merged. Only where all row-heads are about
// equally long, and their number suits the number of warps, are they assigned whole: one or more to a warp, or so many
// splits of each that they all lie in one block.
#pragma once
#include <tile.cuh>

// Added to the length of a row-head in the work space: starting one costs about as much time as so many tiles.
constexpr int ROW_HEAD_COST_TILES = 1;

// One tile of the work space. Behind the last tile of a row-head, `tile` is not below its number of tiles.
struct WorkTile {
    int row;
    int head;
    int tile;
};

// The work of a warp: `length` tiles from `from` on; with a `step` above 1, every `step`-th of them.
struct WorkRange {
    WorkTile from;
    int length;
    int step = 1;
};

// The work blocks that hold a split of one row-head: all from the first to the last.
struct BlockRange {
    int first, last;
};

// Whole row-heads: several per warp, or several warps (of one block) per row-head. One of the two numbers is 1; both
// are 0 where the work space is cut into equal ranges instead.
struct WholeAssignment {
    int row_heads_per_warp, warps_per_row_head;
};

// Whole row-heads are assigned only if at least this share of the warps gets work: memory stays saturated then.
constexpr float MIN_BUSY_SHARE = 0.55f;
// Tiles per warp up to which whole row-heads are assigned. In longer work the merges that this saves are nothing
// against the reads, and memory is 1-2 % slower where all warps read the beginnings of row-heads at the same time.
constexpr int MAX_WHOLE_TILES_PER_WARP = 160;

DEVICE WholeAssignment choose_whole(int num_row_heads, int num_warps, int length, int longest) {
    if (length > MAX_WHOLE_TILES_PER_WARP * num_warps) return {0, 0};
    WholeAssignment whole = {(num_row_heads + num_warps - 1) / num_warps, 1};
    // Row-heads that exceed the mean by more than a tenth and two tiles would keep all others waiting. Empty ones
    // count.
    int slack = whole.row_heads_per_warp == 1 ? 2 : 0;
    if ((float)num_row_heads * (longest - slack) > 1.1f * length) return {0, 0};
    while (NUM_WARPS % (2 * whole.warps_per_row_head) == 0 && num_row_heads * 2 * whole.warps_per_row_head <= num_warps)
        whole.warps_per_row_head *= 2;
    float busy = (float)num_row_heads * whole.warps_per_row_head / whole.row_heads_per_warp;
    return busy >= MIN_BUSY_SHARE * num_warps ? whole : WholeAssignment{0, 0};
}

// Made by the plan kernel for all layers; every block of the attention kernel takes a copy. The rows' part of it lies
// right behind. 31 bits are enough for every cache that fits a GPU; the launcher makes sure of it.
struct Schedule {
    int batch;
    int num_kv_heads;
    int num_blocks;  // work blocks of the attention kernel (columns.cuh)
    int length;      // of the work space, in tiles
    WholeAssignment whole;
    // Of equal ranges:
    int num_ranges;         // none of them empty: one per warp of the grid, or fewer
    int tiles_per_range;    // rounded down
    float remainder;        // tiles per range lost by rounding: they are spread over the ranges
    float ranges_per_tile;  // the inverse of a range's length

    // start: [batch + 1] work index at which each row begins, and the length of the work space.
    DEVICE int* start() { return reinterpret_cast<int*>(this + 1); }
    DEVICE int* num_visible() { return start() + batch + 1; }
    DEVICE int* num_spans() { return num_visible() + batch; }
    DEVICE int start(int row) const { return const_cast<Schedule*>(this)->start()[row]; }
    DEVICE int num_visible(int row) const { return const_cast<Schedule*>(this)->num_visible()[row]; }
    DEVICE int num_spans(int row) const { return const_cast<Schedule*>(this)->num_spans()[row]; }
    // Where num_visible begins, and the length of everything, in words of 32 bits.
    static DEVICE int visible_word(int batch) { return sizeof(Schedule) / 4 + batch + 1; }
    static DEVICE int num_words(int batch) { return visible_word(batch) + 2 * batch; }

    DEVICE int num_warps() const { return num_blocks * NUM_WARPS; }
    DEVICE int num_row_heads() const { return batch * num_kv_heads; }

    DEVICE void partition(int longest) {
        whole = choose_whole(num_row_heads(), num_warps(), length, longest);
        num_ranges = max(1, min(num_warps(), length));
        tiles_per_range = length / num_ranges;
        remainder = (float)(length - num_ranges * tiles_per_range) / num_ranges;
        ranges_per_tile = (float)num_ranges / length;
    }

    // The work of a warp; warps are numbered over all blocks.
    DEVICE WorkRange range_of_warp(int number) const {
        if (whole.warps_per_row_head) return whole_range(number / NUM_WARPS, number % NUM_WARPS);
        int begin = range_begin(number);
        return begin < length ? WorkRange{work_tile(begin), range_begin(number + 1) - begin} : WorkRange{{0, 0, 0}, 0};
    }

    // Work index at which an equal range begins; behind the last range, the end of the work space.
    DEVICE int range_begin(int number) const {
        return number >= num_ranges ? length : number * tiles_per_range + (int)(number * remainder);
    }

    // Round robin over the blocks: those that get one row-head less are spread over the GPU.
    DEVICE WorkRange whole_range(int block, int warp) const {
        int round = warp / whole.warps_per_row_head, split = warp % whole.warps_per_row_head, count = num_row_heads();
        int row_head = (round * num_blocks + block) * whole.row_heads_per_warp;
        if (row_head >= count) return {{0, 0, 0}, 0};
        int row = row_head / num_kv_heads, head = row_head - row * num_kv_heads;
        if (whole.warps_per_row_head > 1) {
            // The warps take tiles in turn, so that what a block reads lies together.
            int tiles = num_tiles(num_visible(row));
            return {{row, head, split}, max(0, tiles - split), whole.warps_per_row_head};
        }
        int behind = min(row_head + whole.row_heads_per_warp, count), last_row = (behind - 1) / num_kv_heads;
        int end = row_head_start(last_row, behind - last_row * num_kv_heads);
        return {{row, head, 0}, end - row_head_start(row, head)};
    }

    // The block that holds a work index, with equal ranges.
    DEVICE int block_of(int work_index) const {
        int range = min(num_ranges - 1, (int)(work_index * ranges_per_tile));
        // The product may be off by one.
        if (work_index < range_begin(range)) range--;
        if (work_index >= range_begin(range + 1)) range++;
        return range / NUM_WARPS;
    }

    DEVICE BlockRange blocks_of(int row, int head) const {
        if (whole.warps_per_row_head) return {work_block(), work_block()};
        int first = row_head_start(row, head), last = first + num_tiles(num_visible(row)) - 1;
        return {block_of(first), block_of(last)};
    }

    static DEVICE int num_tiles(int visible) { return (visible + TILE_TOKENS - 1) / TILE_TOKENS; }

    // Length of one row-head of a row in the work space.
    static DEVICE int work_length(int visible) { return visible == 0 ? 0 : num_tiles(visible) + ROW_HEAD_COST_TILES; }

    DEVICE int row_head_start(int row, int head) const { return start(row) + head * work_length(num_visible(row)); }

    // The row that holds a work index below the length; rows without tokens hold none.
    DEVICE int row_of(int work_index) const {
        int low = 0, high = batch;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (start(middle) <= work_index)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    DEVICE WorkTile work_tile(int work_index) const {
        int row = row_of(work_index);
        u32 per_head = work_length(num_visible(row)), inside = work_index - start(row);
        return {row, (int)(inside / per_head), (int)(inside % per_head)};
    }

    // The first tile of the next row-head; there is one.
    DEVICE WorkTile next_row_head(const WorkTile& at) const {
        if (at.head + 1 < num_kv_heads) return {at.row, at.head + 1, 0};
        int row = at.row + 1;
        while (num_visible(row) == 0) row++;
        return {row, 0, 0};
    }
};
