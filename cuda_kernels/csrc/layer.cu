// The small operations between the GEMMs of a decoder layer, one launch each. They round where eager PyTorch rounds, so
// that a decode step computes what the model computes.
//
// Macros: IS_BF16 (otherwise fp16). Rows are contiguous; a row's length is a multiple of 8 elements.
#include <gated.cuh>

constexpr int MAX_THREADS = 1024;

// Eight neighbouring elements, 16 bytes.
struct Vec8 {
    float x[8];

    DEVICE static Vec8 load(const u16* from) {
        uint4 bits = *reinterpret_cast<const uint4*>(from);
        u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
        Vec8 e;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            e.x[2 * i] = widen(words[i] & 0xffff);
            e.x[2 * i + 1] = widen(words[i] >> 16);
        }
        return e;
    }
    DEVICE void store(u16* to) const {
        *reinterpret_cast<uint4*>(to) =
            make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
    }
};

// The sum over all threads of a block, in a fixed order.
DEVICE float block_sum(float x, float* warp_sums) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += warp_sums[warp];
    return sum;
}

// residual += delta, and the root mean square norm of the sum. One block per row. residual: [batch, hidden], is written
// unless delta is null; weight: [hidden]; out: [batch, hidden].
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    selfspan_add_rms_norm(u16* residual, const u16* delta, const u16* weight, float epsilon, int hidden, u16* out) {
    __shared__ float warp_sums[MAX_THREADS / 32];
    launch_dependents();
    int first = 8 * threadIdx.x, step = 8 * blockDim.x;
    // A thread's first elements, mostly all that it has, stay in registers; its weights do not depend on the kernel
    // before.
    Vec8 kept, scale;
    if (first < hidden) scale = Vec8::load(weight + first);
    wait_for_prior_grids();
    i64 row = (i64)blockIdx.x * hidden;
    float squares = 0.f;
    for (int at = first; at < hidden; at += step) {
        Vec8 x = Vec8::load(residual + row + at);
        if (delta) {
            Vec8 more = Vec8::load(delta + row + at);
#pragma unroll
            for (int i = 0; i < 8; i++) x.x[i] = rounded(x.x[i] + more.x[i]);
            x.store(residual + row + at);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) squares += x.x[i] * x.x[i];
        if (at == first) kept = x;
    }
    float inverse = rsqrtf(block_sum(squares, warp_sums) / hidden + epsilon);
    for (int at = first; at < hidden; at += step) {
        if (at > first) kept = Vec8::load(residual + row + at), scale = Vec8::load(weight + at);
#pragma unroll
        for (int i = 0; i < 8; i++) kept.x[i] = scale.x[i] * rounded(kept.x[i] * inverse);
        kept.store(out + row + at);
    }
}

// Applies the rotary embedding to queries and keys; writes keys and values to the cache. One block per token; every row
// of the batch has num_queries tokens, one behind the other.
// qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim], queries first, then keys, then values.
// rotary: [capacity, 2, head_dim / 2], cosines and sines of every position.
// positions: int32 [num_tokens]; where it is negative there is no token, and nothing is written for it.
// queries: [num_tokens, num_heads, head_dim]. keys, values: one layer's cache, strides in elements.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    selfspan_rotary_write(const u16* qkv, const u16* rotary, const int* positions, int num_queries, int num_heads,
                          int num_kv_heads, int head_dim, u16* queries, u16* keys, u16* values, i64 row_stride,
                          i64 head_stride, i64 token_stride) {
    launch_dependents();
    wait_for_prior_grids();
    int token = blockIdx.x, position = positions[token], half = head_dim / 2;
    if (position < 0) return;
    int num_rotated = num_heads + num_kv_heads, per_head = half / 8;
    qkv += (i64)token * (num_rotated + num_kv_heads) * head_dim;
    i64 in_cache = token / num_queries * row_stride + position * token_stride;
    const u16* cos_sin = rotary + (i64)position * head_dim;
    for (int item = threadIdx.x; item < (num_rotated + num_kv_heads) * per_head; item += blockDim.x) {
        int head = item / per_head, at = item % per_head * 8;
        Vec8 low = Vec8::load(qkv + head * head_dim + at), high = Vec8::load(qkv + head * head_dim + half + at);
        u16* to = head < num_heads     ? queries + ((i64)token * num_heads + head) * head_dim
                  : head < num_rotated ? keys + in_cache + (head - num_heads) * head_stride
                                       : values + in_cache + (head - num_rotated) * head_stride;
        if (head < num_rotated) {
            Vec8 cosine = Vec8::load(cos_sin + at), sine = Vec8::load(cos_sin + half + at);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float a = low.x[i], b = high.x[i];
                low.x[i] = rounded(a * cosine.x[i]) + rounded(-b * sine.x[i]);
                high.x[i] = rounded(b * cosine.x[i]) + rounded(a * sine.x[i]);
            }
        }
        low.store(to + at);
        high.store(to + half + at);
    }
}

// silu(gate) * up. gate_up: [batch, 2, size]; out: [batch, size]. Any one-dimensional grid.
extern "C" __global__ void selfspan_gated_silu(const u16* gate_up, int batch, int size, u16* out) {
    launch_dependents();
    wait_for_prior_grids();
    int per_row = size / 8;
    for (int item = blockIdx.x * blockDim.x + threadIdx.x; item < batch * per_row; item += gridDim.x * blockDim.x) {
        int row = item / per_row, at = item % per_row * 8;
        const u16* from = gate_up + (i64)row * 2 * size + at;
        Vec8 gate = Vec8::load(from), up = Vec8::load(from + size);
#pragma unroll
        for (int i = 0; i < 8; i++) up.x[i] = gated(gate.x[i], up.x[i]);
        up.store(out + (i64)row * size + at);
    }
}

// The same of a transposed input: gate_up: [2, size, batch], batch even, size a multiple of TRANSPOSE_TILE; out:
// [batch, size]. A block transposes a tile of TRANSPOSE_TILE x TRANSPOSE_TILE; the grid is (size / TRANSPOSE_TILE,
// batch / TRANSPOSE_TILE rounded up).
constexpr int TRANSPOSE_TILE = 64;
extern "C" __global__ void __launch_bounds__(4 * TRANSPOSE_TILE)
    selfspan_gated_silu_transposed(const u16* gate_up, int batch, int size, u16* out) {
    // Two elements of padding: rows begin in different banks.
    __shared__ u16 transposed[TRANSPOSE_TILE][TRANSPOSE_TILE + 2];
    launch_dependents();
    wait_for_prior_grids();
    const int first_column = TRANSPOSE_TILE * blockIdx.x, first_row = TRANSPOSE_TILE * blockIdx.y;
    const int pair = 2 * (threadIdx.x % 32), warp = threadIdx.x / 32;
    const i64 from_gate_to_up = (i64)size * batch;
    if (first_row + pair < batch) {
#pragma unroll
        for (int i = 0; i < TRANSPOSE_TILE / 8; i++) {
            int column = warp + 8 * i;
            const u16* from = gate_up + (i64)(first_column + column) * batch + first_row + pair;
            u32 gates = *reinterpret_cast<const u32*>(from);
            u32 ups = *reinterpret_cast<const u32*>(from + from_gate_to_up);
            u32 both =
                pack(gated(widen(gates & 0xffff), widen(ups & 0xffff)), gated(widen(gates >> 16), widen(ups >> 16)));
            transposed[pair][column] = (u16)both, transposed[pair + 1][column] = (u16)(both >> 16);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TRANSPOSE_TILE * TRANSPOSE_TILE / 2; i += blockDim.x) {
        int row = i / (TRANSPOSE_TILE / 2), column = 2 * (i % (TRANSPOSE_TILE / 2));
        if (first_row + row >= batch) return;
        u32 both = transposed[row][column] | (u32)transposed[row][column + 1] << 16;
        *reinterpret_cast<u32*>(out + (i64)(first_row + row) * size + first_column + column) = both;
    }
}
