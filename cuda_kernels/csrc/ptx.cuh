// Instructions that C++ has no name for, one function each. Everything above this file is plain C++, and the tests
// compile it for the CPU with a stand-in for this file.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define DEVICE __device__ __forceinline__
constexpr u32 FULL_WARP = 0xffffffffu;
// Shared memory sized at launch; aligned for 16-byte accesses.
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]

// Loads 16 or 8 bytes that are used once: they do not evict from the first-level cache (which holds the interval
// table). The second level fetches 128 bytes at a time: the same warp reads the neighbours, and memory is a few percent
// faster. `volatile` keeps the loads where they are written, in flight while the tile before is computed.
DEVICE uint4 load_stream16(const u16* from) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from));
    return x;
}

DEVICE uint2 load_stream8(const u16* from) {
    uint2 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
    return x;
}

// This thread's lane. `volatile`: the register is read again at every use, so that values derived from it take up no
// registers in between.
DEVICE int lane_index() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

// Loads data that other blocks of this launch have written, bypassing the first-level cache, which is not coherent.
// Works for shared memory, too.
DEVICE int load_gpu_scope(const int* from) {
    int x;
    asm volatile("ld.relaxed.gpu.s32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}
DEVICE float2 load_gpu_scope(const float2* from) {
    float2 x;
    asm volatile("ld.relaxed.gpu.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(from) : "memory");
    return x;
}
DEVICE float4 load_gpu_scope(const float4* from) {
    float4 x;
    asm volatile("ld.relaxed.gpu.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(from)
                 : "memory");
    return x;
}

// Prefetches 128 bytes into the second-level cache.
DEVICE void prefetch(const void* from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// Writes that this thread has made or seen become visible, on the whole device, to every thread that sees its later
// writes.
DEVICE void fence_device() {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// Programmatic dependent launch (from sm_90 on): a kernel begins while the one before it in the stream still runs. Up
// to this call it must not touch anything that the kernel before, or one that this overlaps with, writes; after it,
// everything launched before is complete and visible. Every kernel of a chain has to wait, even if it reads nothing:
// the next one relies on it. Loads of constant data (`ld.global.nc`) are volatile, so that they stay behind this call.
DEVICE void wait_for_prior_grids() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel begin once every block of this one has called this and there is room for it.
DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// d[16 x 8] += a[16 x 16] * b[16 x 8], one warp. With row = lane / 4 and col = 2 * (lane % 4), a lane holds
//   a: (row, col), (row + 8, col), (row, col + 8), (row + 8, col + 8), pairs along the 16;
//   b: (col, row), (col + 8, row), pairs along the 16;
//   d: (row, col), (row, col + 1), (row + 8, col), (row + 8, col + 1).
DEVICE void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
#if IS_BF16
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    // Turing has half the depth, and no bfloat16.
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// Transposes an 8 x 8 matrix of 16-bit elements held by a warp: lane i holds row i / 4, columns 2 * (i % 4) and the
// next.
DEVICE u32 transpose_8x8(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// Two floats rounded to 16 bits, `low` in the lower half.
DEVICE u32 pack(float low, float high) {
    u32 x;
#if IS_BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
#elif __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
#else
    asm("{.reg .f16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
        : "=r"(x)
        : "f"(low), "f"(high));
#endif
    return x;
}

// A float of the 16 bits in the lower half.
DEVICE float widen(u32 bits) {
#if IS_BF16
    return __int_as_float((int)(bits << 16));
#else
    float x;
    asm("{.reg .b16 h, unused; mov.b32 {h, unused}, %1; cvt.f32.f16 %0, h;}" : "=f"(x) : "r"(bits));
    return x;
#endif
}

// The lower (upper) halves of two registers side by side, that of `a` lowest.
DEVICE u32 lower_halves(u32 a, u32 b) {
    return __byte_perm(a, b, 0x5410);
}
DEVICE u32 upper_halves(u32 a, u32 b) {
    return __byte_perm(a, b, 0x7632);
}

// 2 to the power of x, to about two units in the last place; 0 for very negative x.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// To about two units in the last place; 0 where y is 2 to the 126 or more.
DEVICE float divide_fast(float x, float y) {
    float quotient;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
    return quotient;
}

DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
