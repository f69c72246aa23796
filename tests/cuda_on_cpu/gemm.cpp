// The small-batch GEMM as a function of a shared library: `library` in tests/test_gemm.py compiles this file.
#include <ptx.cuh>

#include <gemm.cu>

extern "C" void run_linear(const u16* x, const Weight* weight, const float* scales, const u16* bias, int batch,
                           int num_out, int depth, u16* out, int num_blocks) {
    std::vector<unsigned> order(num_blocks);
    for (int i = 0; i < num_blocks; i++) order[i] = i;
    Machine::get().streams_constants = true;
    Machine::get().run(order, NUM_THREADS, 0,
                       [=] { selfspan_linear(x, weight, scales, bias, batch, num_out, depth, out); });
}
