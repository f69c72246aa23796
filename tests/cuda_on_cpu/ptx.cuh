// Stands in for cuda_kernels/csrc/ptx.cuh: the same functions, and CUDA's own words, on fibers.
#pragma once
#include <algorithm>
#include <cmath>

#include "fibers.h"

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

using std::max;
using std::min;

#define DEVICE inline
constexpr u32 FULL_WARP = 0xffffffffu;
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) float4* name = reinterpret_cast<float4*>(Machine::get().memory())

// Aligned as on the device: structs that hold them have the same gaps.
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline int2 make_int2(int x, int y) {
    return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
    return {x, y, z, w};
}
inline uint2 make_uint2(u32 x, u32 y) {
    return {x, y};
}
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) {
    return {x, y, z, w};
}

#define threadIdx (Dim{Machine::get().current->thread, 0, 0})
#define blockIdx (Machine::get().block_index())
#define gridDim (Machine::get().grid_size)
#define blockDim (Dim{Machine::get().threads_per_block, 1, 1})

inline void __syncthreads() {
    Machine& machine = Machine::get();
    machine.wait(machine.block(), machine.block().generation);
}
inline void fence_device() {
    Machine::get().current->knowledge.fence();
}
inline void wait_for_prior_grids() {
    Machine::get().current->has_waited = true;
}
inline void launch_dependents() {}
inline int lane_index() {
    return Machine::get().lane();
}
inline void prefetch(const void*) {}
inline void __syncwarp() {
    int nothing = 0;
    Machine::get().exchange(&nothing, sizeof nothing, true);
}

template <class T>
T from_lane(T value, unsigned lane) {
    T result;
    memcpy(&result, Machine::get().exchange(&value, sizeof value)[lane], sizeof result);
    return result;
}
template <class T>
T __shfl_sync(u32, T value, int lane) {
    return from_lane(value, lane % 32);
}
template <class T>
T __shfl_xor_sync(u32, T value, int mask) {
    return from_lane(value, Machine::get().lane() ^ mask);
}
template <class T>
T __shfl_up_sync(u32, T value, int step) {
    unsigned lane = Machine::get().lane();
    return from_lane(value, lane >= (unsigned)step ? lane - step : lane);
}
inline u32 __ballot_sync(u32, bool vote) {
    auto votes = Machine::get().exchange(&vote, sizeof vote);
    u32 all = 0;
    for (int lane = 0; lane < 32; lane++) all |= (u32)(votes[lane][0] & 0xff ? 1 : 0) << lane;
    return all;
}
inline int __ffs(u32 x) {
    return __builtin_ffs((int)x);
}
inline int __clz(u32 x) {
    return x ? __builtin_clz(x) : 32;
}
inline int __popc(u32 x) {
    return __builtin_popcount(x);
}
template <class Change>
UNWATCHED int atomically(int* at, Change change) {
    Machine& machine = Machine::get();
    if (WATCHES) machine.races.atomic(at, machine.current->knowledge);
    int before = *at;
    *at = change(before);
    return before;
}
inline int atomicAdd(int* at, int value) {
    return atomically(at, [=](int before) { return before + value; });
}
inline int atomicOr(int* at, int value) {
    return atomically(at, [=](int before) { return before | value; });
}
inline int atomicMin(int* at, int value) {
    return atomically(at, [=](int before) { return min(before, value); });
}
inline int atomicMax(int* at, int value) {
    return atomically(at, [=](int before) { return max(before, value); });
}
inline u32 __umulhi(u32 a, u32 b) {
    return (u32)((uint64_t)a * b >> 32);
}
inline int __float_as_int(float x) {
    int y;
    memcpy(&y, &x, 4);
    return y;
}
// The four bytes of the result, each one of the eight of two words, lowest first, by the selector's nibbles.
inline u32 __byte_perm(u32 low, u32 high, u32 selector) {
    unsigned long long both = (unsigned long long)high << 32 | low;
    u32 result = 0;
    for (int i = 0; i < 4; i++) result |= (u32)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
inline float __int_as_float(int x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}

template <class T>
T aligned_load(const u16* from) {
    if (reinterpret_cast<uintptr_t>(from) % sizeof(T)) {
        fprintf(stderr, "a load of %zu bytes is not aligned\n", sizeof(T));
        abort();
    }
    T x;
    memcpy(&x, from, sizeof x);
    return x;
}
// Keys, values and queries: the kernel before may still be writing them.
inline void require_wait() {
    Machine& machine = Machine::get();
    if (machine.streams_constants || machine.current->has_waited) return;
    fprintf(stderr, "a thread reads inputs before it has waited for them\n");
    abort();
}
inline uint4 load_stream16(const u16* from) {
    require_wait();
    return aligned_load<uint4>(from);
}
inline uint2 load_stream8(const u16* from) {
    require_wait();
    return aligned_load<uint2>(from);
}
inline int load_gpu_scope(const int* from) {
    return *from;
}
inline float2 load_gpu_scope(const float2* from) {
    return *from;
}
inline float4 load_gpu_scope(const float4* from) {
    return *from;
}

inline float widen(u32 bits) {
#if IS_BF16
    return __int_as_float((int)(bits << 16));
#else
    u32 sign = bits >> 15 << 31, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                 : exponent     ? std::ldexp(1.f + mantissa / 1024.f, (int)exponent - 15)
                                : std::ldexp((float)mantissa, -24);
    return sign ? -size : size;
#endif
}

inline u32 narrow(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
#if IS_BF16
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#else
    u32 sign = bits >> 31 << 15;
    float size = std::fabs(x);
    if (x != x) return 0x7fff;
    if (size >= 65520.f) return sign | 0x7c00;
    if (size < std::ldexp(1.f, -14)) return sign | (u32)std::nearbyint(std::ldexp(size, 24));
    int exponent;
    float mantissa = std::frexp(size, &exponent);  // in [0.5, 1)
    u32 rounded = (u32)std::nearbyint(std::ldexp(mantissa, 11));
    return sign | (((u32)(exponent + 14) << 10) + rounded - 1024);
#endif
}

inline u32 pack(float low, float high) {
    return narrow(low) | narrow(high) << 16;
}
inline u32 lower_halves(u32 a, u32 b) {
    return (a & 0xffff) | b << 16;
}
inline u32 upper_halves(u32 a, u32 b) {
    return a >> 16 | (b & 0xffff0000u);
}
inline float exp2_fast(float x) {
    return std::exp2(x);
}
inline float divide_fast(float x, float y) {
    return x / y;
}
inline float log2_fast(float x) {
    return std::log2(x);
}

// What a lane holds of the factors, gathered from the warp; see the layouts in the real file.
inline void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Machine& machine = Machine::get();
    u32 left[4] = {a0, a1, a2, a3}, right[2] = {b0, b1};
    uint64_t all_left[32][2], all_right[32][2];
    memcpy(all_left, machine.exchange(left, sizeof left), sizeof all_left);
    memcpy(all_right, machine.exchange(right, sizeof right), sizeof all_right);
    auto half = [](const uint64_t* held, int reg, int upper) {
        u32 word = ((const u32*)held)[reg];
        return widen(upper ? word >> 16 : word & 0xffff);
    };
    int lane = machine.lane();
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        double sum = d[i];
        for (int k = 0; k < 16; k++) {
            const uint64_t* a = all_left[row % 8 * 4 + k % 8 / 2];
            const uint64_t* b = all_right[column * 4 + k % 8 / 2];
            sum += (double)half(a, row / 8 + 2 * (k / 8), k % 2) * half(b, k / 8, k % 2);
        }
        d[i] = (float)sum;
    }
}

inline u32 transpose_8x8(u32 x) {
    auto all = Machine::get().exchange(&x, sizeof x);
    int lane = Machine::get().lane(), row = lane / 4, column = 2 * (lane % 4);
    auto at = [&](int r, int c) { return ((u32)all[r * 4 + c / 2][0] >> 16 * (c % 2)) & 0xffff; };
    return at(column, row) | at(column + 1, row) << 16;
}
