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

// States of this block, in shared memory.
struct SlotLoads {
    DEVICE float2 pair(const float* from) const { return *reinterpret_cast<const float2*>(from); }
    DEVICE float4 quad(const float* from) const { return *reinterpret_cast<const float4*>(from); }
};
// States of any block of this launch, in global memory.
struct GlobalLoads {
    DEVICE float2 pair(const float* from) const { return load_shared_by_blocks(reinterpret_cast<const float2*>(from)); }
    DEVICE float4 quad(const float* from) const { return load_shared_by_blocks(reinterpret_cast<const float4*>(from)); }
};

// One head's state in the registers of a warp: four elements of the sum a lane, the rest the same in all lanes.
struct Merged {
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    float greatest = NO_SCORE;
    float weight = 0.f;

    // Add up to 32 states at once: those whose bit is set in `used`; at_head(i) is where the head's state lies in the
    // i-th. All are on their way at once, eight by eight; meanwhile every lane weighs one of them.
    template <class Loads, class AtHead>
    DEVICE void add(u32 used, AtHead at_head, int lane) {
        Loads loads;
        int some = __ffs(used) - 1;  // stands for those that are not used, and counts nothing
        int quad = min(lane, QUADS_PER_HEAD - 1);
        float4 part[4][8];
#pragma unroll
        for (int eight = 0; eight < 4; eight++) {
            if (!(used >> 8 * eight)) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int state = 8 * eight + i;
                part[eight][i] = loads.quad(at_head(used >> state & 1 ? state : some) + 4 * quad);
            }
        }
        bool mine = used >> lane & 1;
        float2 score = loads.pair(at_head(mine ? lane : some) + HEAD_DIM);
        float top = mine ? score.x : NO_SCORE;
        for (int step = 1; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, step));
        top = fmaxf(top, greatest);
        float factor = mine ? exp2_fast(score.x - top) : 0.f, weights = factor * score.y;
        for (int step = 1; step < 32; step *= 2) weights += __shfl_xor_sync(FULL_WARP, weights, step);
        float keep = exp2_fast(greatest - top);
        greatest = top;
        weight = weight * keep + weights;
        sum = make_float4(sum.x * keep, sum.y * keep, sum.z * keep, sum.w * keep);
#pragma unroll
        for (int eight = 0; eight < 4; eight++) {
            if (!(used >> 8 * eight)) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float times = __shfl_sync(FULL_WARP, factor, 8 * eight + i);
                const float4& x = part[eight][i];
                sum = make_float4(sum.x + x.x * times, sum.y + x.y * times, sum.z + x.z * times, sum.w + x.w * times);
            }
        }
    }

    DEVICE void store(float* head, int lane) const {
        if (lane < QUADS_PER_HEAD) reinterpret_cast<float4*>(head)[lane] = sum;
        if (lane == 0) *reinterpret_cast<float2*>(head + HEAD_DIM) = make_float2(greatest, weight);
    }
};
