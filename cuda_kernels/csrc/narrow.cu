// Takes from the logits what a row's rules forbid. One block per query of a row.
//
// Macros: see tracker.cuh; besides MAX_QUERIES, and IS_BF16 (otherwise fp16).
#include <limits.cuh>

constexpr u16 MINUS_INFINITY = IS_BF16 ? 0xff80 : 0xfc00;

// limits: [batch, MAX_QUERIES]; kinds: int16 [vocab_size]; classes: uint8 [vocab_size]; positions: int32 [batch *
// num_queries], negative where there is no token; logits: [batch * num_queries, vocab_size], is written.
extern "C" __global__ void selfspan_narrow(const Limits* limits, const short* kinds, const unsigned char* classes,
                                           const int* positions, int num_queries, int vocab_size, u16* logits) {
    launch_dependents();
    wait_for_prior_grids();
    int token = blockIdx.x;
    const Limits& own = limits[token / num_queries * MAX_QUERIES + token % num_queries];
    if (positions[token] < 0 || own.mode == Limits::ANYTHING) return;
    logits += (i64)token * vocab_size;
    bool is_body = own.mode == Limits::BODY, is_only = own.mode == Limits::ONLY;
    for (int id = threadIdx.x; id < vocab_size; id += blockDim.x) {
        bool is_left = is_body ? !(classes[id] & CLASS_UNFIT) : is_only ? own.has_name(kinds[id]) : own.is_way(id);
        if (!is_left && !own.is_exact(id)) logits[id] = MINUS_INFINITY;
    }
    for (int i = threadIdx.x; is_body && i < own.num_banned; i += blockDim.x)
        if (!own.is_exact(own.banned[i])) logits[own.banned[i]] = MINUS_INFINITY;
}
