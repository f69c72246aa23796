// The sampling kernel as a function of a shared library: `library` in tests/test_sampling.py compiles this file.
#include <ptx.cuh>

#include <sample.cu>

extern "C" void run_sample(const u16* logits, int num_tokens, int vocab_size, int num_queries,
                           const float* temperatures, const float* top_ps, const uint2* seeds, const int* positions,
                           i64* ids, int num_threads) {
    std::vector<unsigned> order(num_tokens);
    for (int token = 0; token < num_tokens; token++) order[token] = token;
    Machine::get().run(order, num_threads, 0, [=] {
        selfspan_sample(logits, vocab_size, num_queries, temperatures, top_ps, seeds, positions, ids);
    });
}

extern "C" void run_philox(const uint4* counter, const uint2* key, uint4* words) {
    *words = philox(*counter, *key);
}
