// What attention over a part of the tokens leaves behind, and how parts become a whole (Milakov & Gimelshein,
// arXiv 1805.02867; split over the sequence as in Flash-Decoding): the greatest score, the sum of weights and the
// weighted sum of values, per head. Scores are in base 2.
#pragma once
#include <table.cuh>

// Stands for "no score yet". Finite: the difference of two of them is 0, where infinities would give NaN.
constexpr float NO_SCORE = -1e30f;

// One head's state in memory: sums [HEAD_DIM], the greatest score, the weight, and two floats that spread heads over
// the banks of shared memory. A state is that of all heads of a group.
constexpr int HEAD_FLOATS = HEAD_DIM + 4;
constexpr int STATE_FLOATS = GROUP * HEAD_FLOATS;
// Four neighbouring elements of a sum are merged by one lane.
constexpr int QUADS_PER_HEAD = HEAD_DIM / 4;

// Where up to 32 states lie that are merged at once, one head's of each, in shared or global memory: behind one another
// from `base` on, but the first anywhere. Those whose bit is not set in `used` do not count.
struct States {
    const float* first;
    const float* base;
    u32 used;
    DEVICE const float* at(int i) const { return i == 0 ? first : base + i * STATE_FLOATS; }
};

// One head's state in the registers of a warp: four elements of the sum a lane, the rest the same in all lanes.
struct Merged {
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    float greatest = NO_SCORE;
    float weight = 0.f;

    // Every lane weighs one of the states; then all read through them, the first sixteen on their way meanwhile.
    DEVICE void add(const States& states, int lane) {
        u32 used = states.used;
        int some = __ffs(used) - 1;  // stands for those that are not used, and counts nothing
        int quad = min(lane, QUADS_PER_HEAD - 1);
        float4 part[16];
        auto load = [&](int first) {
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int state = first + i;
                part[i] = load_from_any_block(
                    reinterpret_cast<const float4*>(states.at(used >> state & 1 ? state : some)) + quad);
            }
        };
        bool mine = used >> lane & 1;
        float2 score = load_from_any_block(reinterpret_cast<const float2*>(states.at(mine ? lane : some) + HEAD_DIM));
        load(0);
        float top = mine ? score.x : NO_SCORE;
        for (int step = 1; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, step));
        top = fmaxf(top, greatest);
        float factor = mine ? exp2_fast(score.x - top) : 0.f, weights = factor * score.y;
        for (int step = 1; step < 32; step *= 2) weights += __shfl_xor_sync(FULL_WARP, weights, step);
        float keep = exp2_fast(greatest - top);
        greatest = top;
        weight = weight * keep + weights;
        sum = make_float4(sum.x * keep, sum.y * keep, sum.z * keep, sum.w * keep);
#pragma unroll 1
        for (int first = 0; first < 32 && used >> first; first += 16) {
            if (first > 0) load(first);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float times = __shfl_sync(FULL_WARP, factor, first + i);
                const float4& x = part[i];
                sum = make_float4(sum.x + x.x * times, sum.y + x.y * times, sum.z + x.z * times, sum.w + x.w * times);
            }
        }
    }

    DEVICE void store(float* head, int lane) const {
        if (lane < QUADS_PER_HEAD) reinterpret_cast<float4*>(head)[lane] = sum;
        if (lane == 0) *reinterpret_cast<float2*>(head + HEAD_DIM) = make_float2(greatest, weight);
    }
};
