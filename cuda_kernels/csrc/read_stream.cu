// The read bandwidth of this GPU, the roof of every memory-bound kernel: each block streams its part of a buffer, 16
// bytes per thread and load, eight loads in flight.
#include <ptx.cuh>

extern "C" __global__ void __launch_bounds__(512) selfspan_read_stream(const u16* data, i64 num_quads, u32* sink) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    u32 seen = 0;
    i64 first = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    for (i64 at = first; at < num_quads; at += 8 * stride) {
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            i64 quad = at + i * stride;
            x[i] = load_stream16(data + 8 * (quad < num_quads ? quad : at));
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            // volatile, like the loads: none of it moves between them.
            asm volatile("{.reg .u32 t; xor.b32 t, %1, %2; xor.b32 %0, %0, t; xor.b32 t, %3, %4; xor.b32 %0, %0, t;}"
                         : "+r"(seen)
                         : "r"(x[i].x), "r"(x[i].y), "r"(x[i].z), "r"(x[i].w));
    }
    // Keeps the compiler from removing the loads; hardly ever true.
    if (seen == 0x12345678u) *sink = seen;
}
