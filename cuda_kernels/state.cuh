// What attention over a part of the tokens leaves behind, and how parts become a whole (Milakov & Gimelshein,
// arXiv 1805.02867; split over the sequence as in Flash-Decoding): the greatest score, the sum of weights and the
// weighted sum of values, per head. Scores are in base 2.
#pragma once
#include <ptx.cuh>

// Stands for "no score yet". Finite: the difference of two of them is 0, where infinities would give NaN.
constexpr float NO_SCORE = -1e30f;

// One state in memory: sums [GROUP][HEAD_DIM], then the greatest scores [GROUP], then the weights [GROUP].
constexpr int STATE_FLOATS = (GROUP * (HEAD_DIM + 2) + 3) / 4 * 4;
// Four neighbouring elements of one head's sum are merged by one thread.
constexpr int QUADS_PER_HEAD = HEAD_DIM / 4;
constexpr int QUADS = GROUP * QUADS_PER_HEAD;

DEVICE const float* greatest_of(const float* state) {
    return state + GROUP * HEAD_DIM;
}
DEVICE const float* weights_of(const float* state) {
    return state + GROUP * HEAD_DIM + GROUP;
}
DEVICE float* greatest_of(float* state) {
    return state + GROUP * HEAD_DIM;
}
DEVICE float* weights_of(float* state) {
    return state + GROUP * HEAD_DIM + GROUP;
}

// One head's part of a state, as far as one thread is concerned.
struct Merged {
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    float greatest = NO_SCORE;
    float weight = 0.f;

    DEVICE void add(float4 other_sum, float other_greatest, float other_weight) {
        float top = fmaxf(greatest, other_greatest);
        float mine = exp2_fast(greatest - top), others = exp2_fast(other_greatest - top);
        sum.x = sum.x * mine + other_sum.x * others;
        sum.y = sum.y * mine + other_sum.y * others;
        sum.z = sum.z * mine + other_sum.z * others;
        sum.w = sum.w * mine + other_sum.w * others;
        weight = weight * mine + other_weight * others;
        greatest = top;
    }

    DEVICE void store(float* state, int quad) const {
        int head = quad / QUADS_PER_HEAD;
        reinterpret_cast<float4*>(state)[quad] = sum;
        if (quad % QUADS_PER_HEAD == 0) {
            greatest_of(state)[head] = greatest;
            weights_of(state)[head] = weight;
        }
    }
};
