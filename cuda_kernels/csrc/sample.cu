// The id behind every token: the most likely one, or drawn with a temperature from the top-p set (nucleus sampling,
// Holtzman et al., arXiv 1904.09751). The drawn id depends on the token's logits and position and its row's settings
// only, not on the batch. One block per token.
//
// Drawing adds Gumbel noise to every score and takes the maximum: no cumulative sum over the vocabulary is needed.
//
// Macros: IS_BF16 (otherwise fp16).
#include <ptx.cuh>

constexpr int MAX_THREADS = 1024;
// Below it, sampling is greedy: the inverse, times a score, could overflow.
constexpr float MIN_TEMPERATURE = 1e-6f;

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four random words of a counter
// and a key.
DEVICE uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        u32 high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
    }
    return counter;
}

// A random number with Gumbel's distribution. The uniform number behind it is never 0 or 1.
DEVICE float gumbel(u32 word) {
    float uniform = ((word >> 9) + 0.5f) * (1.f / (1 << 23));
    return -logf(-logf(uniform));
}

// Maps floats to integers of the same order.
DEVICE int ordered_int(float x) {
    int bits = __float_as_int(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

// A candidate of the argmax: the greater score wins, and of equal scores the lower index.
struct Candidate {
    float score;
    int index;

    DEVICE void merge(const Candidate& other) {
        if (other.score > score || (other.score == score && other.index < index)) *this = other;
    }
};

// Shared memory of a block.
struct Scratch {
    float sums[MAX_THREADS / 32];
    Candidate candidates[MAX_THREADS / 32];
};

DEVICE float block_sum(float x, Scratch& scratch) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    __syncthreads();  // the sum before has been read
    if (threadIdx.x % 32 == 0) scratch.sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += scratch.sums[warp];
    return sum;
}

DEVICE Candidate block_best(Candidate best, Scratch& scratch) {
    for (int step = 16; step > 0; step /= 2) {
        Candidate other = {__shfl_xor_sync(FULL_WARP, best.score, step), __shfl_xor_sync(FULL_WARP, best.index, step)};
        best.merge(other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch.candidates[threadIdx.x / 32] = best;
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) best.merge(scratch.candidates[warp]);
    return best;
}

// The logits of one token, divided by the temperature.
struct Logits {
    const u16* logits;
    int size;
    float factor;

    // Calls use(score, index) for this thread's elements.
    template <class Use>
    DEVICE void for_each(Use use) const {
        for (int i = threadIdx.x; i < size; i += blockDim.x) use(widen(logits[i]) * factor, i);
    }

    DEVICE Candidate best(Scratch& scratch) const {
        Candidate found = {-__int_as_float(0x7f800000), size};
        for_each([&](float score, int i) { found.merge({score, i}); });
        return block_best(found, scratch);
    }

    // The greatest threshold, as an ordered integer, such that the scores that reach it hold at least `top_p` of the
    // probability. Bisection over all floats: exact, in 32 steps.
    DEVICE int top_p_threshold(float top, float top_p, Scratch& scratch) const {
        float all = 0.f;
        for_each([&](float score, int) { all += expf(score - top); });
        float target = top_p * block_sum(all, scratch);
        i64 low = ordered_int(-__int_as_float(0x7f800000)),
            high = (i64)ordered_int(top) + 1;  // low is a valid threshold, high is too great
        while (high - low > 1) {
            i64 middle = (low + high) >> 1;
            float mass = 0.f;
            for_each([&](float score, int) { mass += ordered_int(score) >= middle ? expf(score - top) : 0.f; });
            if (block_sum(mass, scratch) >= target)
                low = middle;
            else
                high = middle;
        }
        return (int)low;
    }

    DEVICE Candidate draw(int threshold, uint2 key, int position, Scratch& scratch) const {
        Candidate found = {-__int_as_float(0x7f800000), size};
        for_each([&](float score, int i) {
            if (ordered_int(score) < threshold) return;
            uint4 words = philox(make_uint4(i / 4, position, 0, 0), key);
            u32 word = i % 4 == 0 ? words.x : i % 4 == 1 ? words.y : i % 4 == 2 ? words.z : words.w;
            found.merge({score + gumbel(word), i});
        });
        return block_best(found, scratch);
    }
};

// logits: [num_tokens, vocab_size]; every row of the batch has num_queries tokens, one behind the other. temperatures:
// float32 [batch], 0 for greedy; top_ps: float32 [batch], 1 for the whole vocabulary; seeds: [batch], two words each;
// positions: int32 [num_tokens], of the tokens that the logits belong to; where it is negative there is no token, and
// nothing is written. ids: int64 [num_tokens], is written.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    selfspan_sample(const u16* logits, int vocab_size, int num_queries, const float* temperatures, const float* top_ps,
                    const uint2* seeds, const int* positions, i64* ids) {
    __shared__ Scratch scratch;
    launch_dependents();
    wait_for_prior_grids();
    int token = blockIdx.x, row = token / num_queries;
    // The position is read once more below: kept in a register, it makes others spill on sm_100.
    if (positions[token] < 0) return;
    float temperature = temperatures[row] < MIN_TEMPERATURE ? 0.f : temperatures[row];
    Logits own = {logits + (i64)token * vocab_size, vocab_size, temperature > 0.f ? 1.f / temperature : 1.f};
    Candidate best = own.best(scratch);
    if (temperature > 0.f) {
        int threshold = top_ps[row] < 1.f ? own.top_p_threshold(best.score, top_ps[row], scratch)
                                          : ordered_int(-__int_as_float(0x7f800000));
        best = own.draw(threshold, seeds[row], positions[token], scratch);
    }
    // If no score is a number, there is no candidate: take the last id.
    if (threadIdx.x == 0) ids[token] = min(best.index, vocab_size - 1);
}
