// What may be written next, as rules say it of one query of a row; written by the drafting kernel, read by `narrow.cu`.
//
// Macros: see tracker.cuh.
#pragma once
#include <words.cuh>

constexpr int MOST_STEPS = 8;
constexpr int NUM_NAME_WORDS = (NUM_ANCHORS + 31) / 32;  // a bit per name
constexpr int MOST_EXACT = 4, MOST_BANNED = MOST_BODY + MOST_STEPS, MOST_WAYS = 128;

struct Limits {
    // Anything; one of `exact` and of the names; anything but what is unfit for a body or in `banned`, and `exact`;
    // one of `ways` and of `exact`.
    enum Mode { ANYTHING, ONLY, BODY, WAYS };
    int mode;
    int num_exact, exact[MOST_EXACT];
    u32 names[NUM_NAME_WORDS];
    int num_banned, banned[MOST_BANNED];
    int num_ways, ways[MOST_WAYS];

    DEVICE bool is_exact(int token) const {
        bool is_one = false;
        for (int i = 0; i < num_exact; i++) is_one |= exact[i] == token;
        return is_one;
    }

    DEVICE bool is_way(int token) const {
        bool is_one = false;
        for (int i = 0; i < num_ways; i++) is_one |= ways[i] == token;
        return is_one;
    }

    DEVICE bool is_banned(int token) const {
        bool is_one = false;
        for (int i = 0; i < num_banned; i++) is_one |= banned[i] == token;
        return is_one;
    }

    DEVICE bool has_name(int kind) const {
        return 0 <= kind && kind < NUM_ANCHORS && (names[kind / 32] >> kind % 32 & 1);
    }
};
