// Who works on what: all (row, key/value head) units lie behind one another on a line, and the line is cut into slices
// of equal length, one per warp. So no mix of lengths leaves a multiprocessor without work.
#pragma once
#include <ptx.cuh>

// A slice is cut where a tile ends; a unit's place on the line is a little longer than its tokens, because taking one
// up costs about as much as reading so many.
constexpr int CUT_TOKENS = 16;
constexpr int UNIT_COST_TOKENS = 32;

// A long line is handed out in rounds of slices that get shorter: one half, a quarter, an eighth ... each, and the last
// two rounds alike. Whoever reads fast takes more of the short ones, and all are done at about the same time.
constexpr int MAX_ROUNDS = 6;
// From how many places per warp on a line is long, and how many the shortest slices of a long one have at least.
#ifndef LONG_SLICE_PLACES
#define LONG_SLICE_PLACES 1024
#endif
#ifndef SHORT_SLICE_PLACES
#define SHORT_SLICE_PLACES 64
#endif

DEVICE int choose_rounds(int length, int num_warps) {
    int rounds = 1, places = length / num_warps;
    if (places < LONG_SLICE_PLACES) return rounds;
    while (rounds < MAX_ROUNDS && places >> rounds >= SHORT_SLICE_PLACES) rounds++;
    return rounds;
}

// A place on the line. `token` is a list index of the row; the place behind a unit's last token is the next unit's
// start.
struct Place {
    int row;
    int head;
    int token;
};

// 31 bits are enough for every cache that fits a GPU; the launcher makes sure.
struct Line {
    const int* row_start;  // [batch + 1] first place of each row, and the length of the line
    const int* num_visible;
    int batch;
    int num_kv_heads;
    int length;
    int num_warps;  // of the grid; as many slices a round
    int num_rounds;
    int shortest;  // places of a slice of the last round

    DEVICE Line(const int* starts, const int* visible, int rows, int heads, int warps) {
        row_start = starts;
        num_visible = visible;
        batch = rows;
        num_kv_heads = heads;
        length = starts[rows];
        num_warps = warps;
        num_rounds = choose_rounds(length, warps);
        int parts = warps << (num_rounds - 1);
        shortest = max(CUT_TOKENS, (length + parts - 1) / parts);
    }

    DEVICE int num_slices() const { return num_rounds * num_warps; }

    // Places of a slice of one round, and of all slices of the rounds before it.
    DEVICE int slice_places(int round) const { return shortest << max(0, num_rounds - 2 - round); }
    DEVICE int places_before(int round) const {
        return shortest * num_warps * ((1 << (num_rounds - 1)) - (1 << (num_rounds - 1 - round)));
    }

    // The slice that a place would be in if slices were cut anywhere.
    DEVICE int slice_of(int place) const {
        int round = 0;
        while (round < num_rounds - 1 && place >= places_before(round + 1)) round++;
        return round * num_warps + (place - places_before(round)) / slice_places(round);
    }

    // Places of one unit of a row.
    static DEVICE int unit_length(int visible) { return visible == 0 ? 0 : visible + UNIT_COST_TOKENS; }

    DEVICE int unit_start(int row, int head) const { return row_start[row] + head * unit_length(num_visible[row]); }

    // The row that holds a place before the end of the line; rows without tokens hold none.
    DEVICE int row_of(int place) const {
        int low = 0, high = batch;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (row_start[middle] <= place)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    DEVICE Place place(int at) const {
        int row = row_of(at);
        u32 unit = unit_length(num_visible[row]), inside = at - row_start[row];
        return {row, (int)(inside / unit), (int)(inside % unit)};
    }

    // Where slice number `slice` begins; a warp's slice ends where the next begins. A cut moves to where a tile of its
    // unit begins, or behind the unit.
    DEVICE int cut(int slice) const {
        if (slice >= num_slices()) return length;
        int round = slice / num_warps;
        int raw = places_before(round) + slice % num_warps * slice_places(round);
        if (raw >= length) return length;
        Place at = place(raw);
        int token = at.token / CUT_TOKENS * CUT_TOKENS, visible = num_visible[at.row];
        return unit_start(at.row, at.head) + (token < visible ? token : unit_length(visible));
    }
};
