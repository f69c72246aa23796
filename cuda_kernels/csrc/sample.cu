// The next id of every row: the likeliest, or drawn by temperature among the likeliest that hold a share of the
// probability (nucleus sampling, Holtzman et al., arXiv 1904.09751). What is drawn depends on the row's logits, seed
// and position only, not on the batch. One block per row.
//
// Drawing adds a Gumbel number to every score and takes the greatest: no sum over the vocabulary has to be inverted.
//
// Injected: IS_BF16 (else fp16).
#include <ptx.cuh>

constexpr int MAX_THREADS = 1024;
// Below it the likeliest id is taken: its inverse, times a score, would not be a number.
constexpr float LEAST_TEMPERATURE = 1e-6f;

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

// Floats as integers of the same order.
DEVICE int in_order(float x) {
    int bits = __float_as_int(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

// A candidate: the greater score wins, and of equal ones the lower index.
struct Best {
    float score;
    int index;

    DEVICE void meet(const Best& other) {
        if (other.score > score || (other.score == score && other.index < index)) *this = other;
    }
};

// Shared memory of a block.
struct Scratch {
    float sums[MAX_THREADS / 32];
    Best bests[MAX_THREADS / 32];
};

DEVICE float sum_of_block(float x, Scratch& scratch) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    __syncthreads();  // the last sum is read no more
    if (threadIdx.x % 32 == 0) scratch.sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += scratch.sums[warp];
    return sum;
}

DEVICE Best best_of_block(Best best, Scratch& scratch) {
    for (int step = 16; step > 0; step /= 2) {
        Best other = {__shfl_xor_sync(FULL_WARP, best.score, step), __shfl_xor_sync(FULL_WARP, best.index, step)};
        best.meet(other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch.bests[threadIdx.x / 32] = best;
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) best.meet(scratch.bests[warp]);
    return best;
}

// One row's logits, over the temperature.
struct Scores {
    const u16* logits;
    int size;
    float factor;

    // Calls use(score, index) for this thread's part.
    template <class Use>
    DEVICE void for_each(Use use) const {
        for (int i = threadIdx.x; i < size; i += blockDim.x) use(widen(logits[i]) * factor, i);
    }

    DEVICE Best best(Scratch& scratch) const {
        Best found = {-__int_as_float(0x7f800000), size};
        for_each([&](float score, int i) { found.meet({score, i}); });
        return best_of_block(found, scratch);
    }

    // The greatest bound that scores may have to reach, as an ordered integer, such that those which do hold at least
    // `share` of the probability. Bisection over all floats: exact, in 32 steps.
    DEVICE int bound(float top, float share, Scratch& scratch) const {
        float all = 0.f;
        for_each([&](float score, int) { all += expf(score - top); });
        float wanted = share * sum_of_block(all, scratch);
        i64 low = in_order(-__int_as_float(0x7f800000)),
            high = (i64)in_order(top) + 1;  // low will do, high is too much
        while (high - low > 1) {
            i64 middle = (low + high) >> 1;
            float held = 0.f;
            for_each([&](float score, int) { held += in_order(score) >= middle ? expf(score - top) : 0.f; });
            if (sum_of_block(held, scratch) >= wanted)
                low = middle;
            else
                high = middle;
        }
        return (int)low;
    }

    DEVICE Best draw(int least, uint2 key, int position, Scratch& scratch) const {
        Best found = {-__int_as_float(0x7f800000), size};
        for_each([&](float score, int i) {
            if (in_order(score) < least) return;
            uint4 words = philox(make_uint4(i / 4, position, 0, 0), key);
            u32 word = i % 4 == 0 ? words.x : i % 4 == 1 ? words.y : i % 4 == 2 ? words.z : words.w;
            found.meet({score + gumbel(word), i});
        });
        return best_of_block(found, scratch);
    }
};

// logits: [batch, vocab_size]. temperatures: float32 [batch], 0 for the likeliest id; shares: float32 [batch], of the
// probability that the ids to draw from hold, 1 for all; seeds: [batch], two words each; positions: int32 [batch],
// those of the tokens that the logits are of. ids: int64 [batch], is written.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    selfspan_sample(const u16* logits, int vocab_size, const float* temperatures, const float* shares,
                    const uint2* seeds, const int* positions, i64* ids) {
    __shared__ Scratch scratch;
    let_next_start();
    wait_for_inputs();
    int row = blockIdx.x;
    float temperature = temperatures[row] < LEAST_TEMPERATURE ? 0.f : temperatures[row];
    Scores scores = {logits + (i64)row * vocab_size, vocab_size, temperature > 0.f ? 1.f / temperature : 1.f};
    Best best = scores.best(scratch);
    if (temperature > 0.f) {
        int least =
            shares[row] < 1.f ? scores.bound(best.score, shares[row], scratch) : in_order(-__int_as_float(0x7f800000));
        best = scores.draw(least, seeds[row], positions[row], scratch);
    }
    // Where no score is a number, none is the best: the last will do.
    if (threadIdx.x == 0) ids[row] = min(best.index, vocab_size - 1);
}
