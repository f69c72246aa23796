// The kernel that narrows logits as a function of a shared library: `narrow_library` in tests/support/rules_on_cpu.py
// compiles it.
#include <ptx.cuh>

#include <narrow.cu>

extern "C" void run_narrow(const Limits* limits, const short* kinds, const unsigned char* classes, const int* positions,
                           int num_tokens, int num_queries, int vocab_size, u16* logits, int num_threads) {
    std::vector<unsigned> order(num_tokens);
    for (int token = 0; token < num_tokens; token++) order[token] = token;
    Machine::get().run(order, num_threads, 0,
                       [=] { selfspan_narrow(limits, kinds, classes, positions, num_queries, vocab_size, logits); });
}
