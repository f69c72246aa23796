// The layer kernels as functions of a shared library: `library` in tests/test_layer_kernels.py compiles this file.
#include <ptx.cuh>

inline float rsqrtf(float x) {
    return 1.f / std::sqrt(x);
}

#include <layer.cu>

static std::vector<unsigned> blocks(int count) {
    std::vector<unsigned> order(count);
    for (int i = 0; i < count; i++) order[i] = i;
    return order;
}

extern "C" void run_add_rms_norm(u16* residual, const u16* delta, const u16* weight, float epsilon, int batch,
                                 int hidden, u16* out, int num_threads) {
    Machine::get().run(blocks(batch), num_threads, 0,
                       [=] { selfspan_add_rms_norm(residual, delta, weight, epsilon, hidden, out); });
}

extern "C" void run_rotary_write(const u16* qkv, const u16* rotary, const int* positions, int num_tokens,
                                 int num_queries, int num_heads, int num_kv_heads, int head_dim, u16* queries,
                                 u16* keys, u16* values, const i64* strides, int num_threads) {
    Machine::get().run(blocks(num_tokens), num_threads, 0, [=] {
        selfspan_rotary_write(qkv, rotary, positions, num_queries, num_heads, num_kv_heads, head_dim, queries, keys,
                              values, strides[0], strides[1], strides[2]);
    });
}

extern "C" void run_gated_silu(const u16* gate_up, int batch, int size, u16* out, int num_blocks, int num_threads) {
    Machine::get().run(blocks(num_blocks), num_threads, 0, [=] { selfspan_gated_silu(gate_up, batch, size, out); });
}

extern "C" void run_gated_silu_transposed(const u16* gate_up, int batch, int size, u16* out) {
    Machine& machine = Machine::get();
    int rows = (batch + TRANSPOSE_TILE - 1) / TRANSPOSE_TILE;
    for (machine.block_row = 0; (int)machine.block_row < rows; machine.block_row++)
        machine.run(blocks(size / TRANSPOSE_TILE), 4 * TRANSPOSE_TILE, 0,
                    [=] { selfspan_gated_silu_transposed(gate_up, batch, size, out); });
    machine.block_row = 0;
}
