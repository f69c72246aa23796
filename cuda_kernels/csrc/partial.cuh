// The partial result of attention over a split of the tokens, and how splits are merged (online softmax, Milakov &
// Gimelshein, arXiv 1805.02867; split-KV as in Flash-Decoding): per column, the maximum score, the sum of exponentials
// and the weighted sum of values. Scores are in base 2.
#pragma once
#include <table.cuh>

// Stands for "no score yet". Finite: the difference of two of them is 0, where infinities would give NaN.
constexpr float MIN_SCORE = -1e30f;

// Layout of one column: weighted sum [HEAD_DIM], maximum score, sum of exponentials, and two floats of padding that
// spread columns over the banks of shared memory. A partial result has all columns of a column block.
constexpr int COLUMN_FLOATS = HEAD_DIM + 4;
constexpr int PARTIAL_FLOATS = COLUMNS * COLUMN_FLOATS;
// A lane merges four neighbouring elements of the sum.
constexpr int QUADS_PER_COLUMN = HEAD_DIM / 4;

// Addresses of up to 32 partial results of one column that are merged at once, in shared or global memory: contiguous
// from `base` on, but the first one may lie anywhere. Only those whose bit is set in `used` count.
struct Partials {
    const float* first;
    const float* base;
    u32 used;
    DEVICE const float* at(int i) const { return i == 0 ? first : base + i * PARTIAL_FLOATS; }
};

// One column's merged result in the registers of a warp: four elements of the sum per lane, the rest equal in all
// lanes.
struct Merged {
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    float max_score = MIN_SCORE;
    float exp_sum = 0.f;

    // Each lane computes the factor of one partial result; then all lanes read through all of them. The first sixteen
    // are being loaded meanwhile; with many columns all of them, and none in vain but to fill up four.
    DEVICE void add(const Partials& partials, int lane) {
        u32 used = partials.used;
        int some = __ffs(used) - 1;  // loaded in place of those that are not used, with factor 0
        int quad = min(lane, QUADS_PER_COLUMN - 1);
        constexpr int LOADED = IS_WIDE ? 32 : 16;
        float4 values[LOADED];
        auto ends_before = [&](int i) { return IS_WIDE && i % 4 == 0 && used >> i == 0; };
        auto load = [&](int first) {
#pragma unroll
            for (int i = 0; i < LOADED; i++) {
                if (ends_before(i)) break;
                int partial = first + i;
                values[i] = load_gpu_scope(
                    reinterpret_cast<const float4*>(partials.at(used >> partial & 1 ? partial : some)) + quad);
            }
        };
        bool mine = used >> lane & 1;
        float2 score = load_gpu_scope(reinterpret_cast<const float2*>(partials.at(mine ? lane : some) + HEAD_DIM));
        load(0);
        float new_max = mine ? score.x : MIN_SCORE;
        for (int step = 1; step < 32; step *= 2) new_max = fmaxf(new_max, __shfl_xor_sync(FULL_WARP, new_max, step));
        new_max = fmaxf(new_max, max_score);
        float factor = mine ? exp2_fast(score.x - new_max) : 0.f, exp_sums = factor * score.y;
        for (int step = 1; step < 32; step *= 2) exp_sums += __shfl_xor_sync(FULL_WARP, exp_sums, step);
        float rescale = exp2_fast(max_score - new_max);
        max_score = new_max;
        exp_sum = exp_sum * rescale + exp_sums;
        sum = make_float4(sum.x * rescale, sum.y * rescale, sum.z * rescale, sum.w * rescale);
#pragma unroll 1
        for (int first = 0; first < 32 && used >> first; first += LOADED) {
            if (first > 0) load(first);
#pragma unroll
            for (int i = 0; i < LOADED; i++) {
                if (ends_before(i)) break;
                float times = __shfl_sync(FULL_WARP, factor, first + i);
                const float4& x = values[i];
                sum = make_float4(sum.x + x.x * times, sum.y + x.y * times, sum.z + x.z * times, sum.w + x.w * times);
            }
        }
    }

    DEVICE void store(float* column, int lane) const {
        if (lane < QUADS_PER_COLUMN) reinterpret_cast<float4*>(column)[lane] = sum;
        if (lane == 0) *reinterpret_cast<float2*>(column + HEAD_DIM) = make_float2(max_score, exp_sum);
    }
};
