// Who works on what: all (row, key/value head) units lie behind one another on a line, and the line is cut into slices
// of equal length, one per warp. So no mix of lengths leaves a multiprocessor without work.
#pragma once
#include <ptx.cuh>

// A unit's stretch of the line is a little longer than its tokens, because taking one up costs about as much as reading
// so many.
#ifndef UNIT_COST_TOKENS
#define UNIT_COST_TOKENS 16
#endif
// No slice is shorter: a tile costs the same however few of its tokens are there.
constexpr int LEAST_SLICE_PLACES = 16;

// A long line is handed out in rounds of slices that get shorter: one half, a quarter, an eighth ... each, and the last
// two rounds alike. Whoever reads fast takes more of the short ones, and all are done at about the same time.
constexpr int MAX_ROUNDS = 6;
// From how many places per warp on a line is long, and how many the shortest slices of a long one have at least.
#ifndef LONG_SLICE_PLACES
#define LONG_SLICE_PLACES 512
#endif
#ifndef SHORT_SLICE_PLACES
#define SHORT_SLICE_PLACES 64
#endif
// Warps that take slices, and merge what these leave, together. All of a block on a short line, which leaves the fewest
// parts for other blocks to merge; few on a long one, where nobody is to wait for others more than needed.
constexpr int LONG_TEAM_WARPS = NUM_WARPS % 4 == 0 ? 4 : NUM_WARPS;
constexpr int MAX_TEAMS = NUM_WARPS / LONG_TEAM_WARPS;
// Slices stay so long that a unit has at most about as many parts: one warp merges them.
constexpr int MAX_PARTS = 32;

DEVICE int choose_rounds(int length, int num_warps, int longest_unit) {
    int rounds = 1, places = length / num_warps;
    if (places < LONG_SLICE_PLACES) return rounds;
    while (rounds < MAX_ROUNDS && places >> rounds >= SHORT_SLICE_PLACES &&
           (places >> rounds) * LONG_TEAM_WARPS * MAX_PARTS >= longest_unit)
        rounds++;
    return rounds;
}

// A place on the line. `token` is a list index of the row, or, behind the unit's last token, not below their number.
struct Place {
    int row;
    int head;
    int token;
};

// Rows as all threads of a block see them, in shared memory.
struct Rows {
    int* start;        // [batch + 1] first place of each row, and the length of the line
    int* num_visible;  // [batch]
    int* num_spans;    // [batch]
};

// Groups of slices, one per team, that hold a part of one unit; all of them do.
struct Groups {
    int first, last;
};

// One for all threads of a block. 31 bits are enough for every cache that fits a GPU; the launcher makes sure.
struct Line {
    Rows rows;
    int batch;
    int num_kv_heads;
    int length;
    int num_warps;  // of the grid; as many slices a round
    int num_rounds;
    int shortest;    // places of a slice of the last round
    int team_warps;  // of this launch
    int num_teams;   // of the grid; as many groups a round

    Line() = default;
    DEVICE Line(const Rows& laid_out, int batch_size, int heads, int warps, int longest_unit) {
        rows = laid_out;
        batch = batch_size;
        num_kv_heads = heads;
        length = rows.start[batch];
        num_warps = warps;
        num_rounds = choose_rounds(length, warps, longest_unit);
        int parts = warps << (num_rounds - 1);
        shortest = max(LEAST_SLICE_PLACES, (length + parts - 1) / parts);
        team_warps = num_rounds == 1 ? NUM_WARPS : LONG_TEAM_WARPS;
        num_teams = num_warps / team_warps;
    }

    DEVICE int num_groups() const { return num_rounds * num_teams; }

    // Places of a slice of one round, and of all slices of the rounds before it.
    DEVICE int slice_places(int round) const { return shortest << max(0, num_rounds - 2 - round); }
    DEVICE int places_before(int round) const {
        return shortest * num_warps * ((1 << (num_rounds - 1)) - (1 << (num_rounds - 1 - round)));
    }

    // First place of a slice of a round; `slice` may be the number of warps, for the end of the last.
    DEVICE int slice_begin(int round, int slice) const {
        return min(length, places_before(round) + slice * slice_places(round));
    }

    // The group that holds a place.
    DEVICE int group_of(int place) const {
        int round = 0;
        while (round < num_rounds - 1 && place >= places_before(round + 1)) round++;
        int slice = (u32)(place - places_before(round)) / (u32)slice_places(round);
        return (round * num_warps + slice) / team_warps;
    }

    DEVICE Groups groups_of(int row, int head) const {
        int start = unit_start(row, head);
        return {group_of(start), group_of(start + rows.num_visible[row] - 1)};
    }

    // Places of one unit of a row.
    static DEVICE int unit_length(int visible) { return visible == 0 ? 0 : visible + UNIT_COST_TOKENS; }

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
