// Who works on what: all (row, key/value head) units lie behind one another on a line, and the line is cut into slices
// of equal length, one per warp. So no mix of lengths leaves a multiprocessor without work.
#pragma once
#include <ptx.cuh>

// A slice is cut where a tile ends; a unit's place on the line is a little longer than its tokens, because taking one
// up costs about as much as reading so many.
constexpr int CUT_TOKENS = 16;
constexpr int UNIT_COST_TOKENS = 32;

// Rounds in which the slices are handed out, and how many places a slice of more than one round holds at least.
constexpr int MAX_ROUNDS = 4;
#ifndef LONG_SLICE_PLACES
#define LONG_SLICE_PLACES 512
#endif

DEVICE int num_rounds(int length, int num_warps) {
    return min(MAX_ROUNDS, max(1, length / num_warps / LONG_SLICE_PLACES));
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
    int slice_length;
    int num_slices;  // that hold work; the other warps have none

    DEVICE Line(const int* starts, const int* visible, int rows, int heads, int num_warps) {
        row_start = starts;
        num_visible = visible;
        batch = rows;
        num_kv_heads = heads;
        length = starts[rows];
        slice_length = max(CUT_TOKENS, (length + num_warps - 1) / num_warps);
        num_slices = (length + slice_length - 1) / slice_length;
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

    // Where slice number `slice` begins; a warp's slice ends where the next begins.
    DEVICE int cut(int slice) const {
        if (slice >= num_slices) return length;
        Place at = place(slice * slice_length);
        int token = at.token / CUT_TOKENS * CUT_TOKENS, visible = num_visible[at.row];
        return unit_start(at.row, at.head) + (token < visible ? token : unit_length(visible));
    }
};
