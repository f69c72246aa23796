// The sampling kernel as a function of a shared library: `library` in tests/test_sampling.py compiles this file.
#include <ptx.cuh>

#include <sample.cu>

extern "C" void run_sample(const u16* logits, int batch, int vocab_size, const float* temperatures, const float* top_ps,
                           const uint2* seeds, const int* positions, i64* ids, int num_threads) {
    std::vector<unsigned> order(batch);
    for (int row = 0; row < batch; row++) order[row] = row;
    Machine::get().run(order, num_threads, 0,
                       [=] { selfspan_sample(logits, vocab_size, temperatures, top_ps, seeds, positions, ids); });
}

extern "C" void run_philox(const uint4* counter, const uint2* key, uint4* words) {
    *words = philox(*counter, *key);
}
