// Instructions of sm_90a that C++ has no name for, one function each: mbarriers, TMA loads, wgmma, and stores to other
// blocks of a cluster (PTX ISA 8.0). As for ptx.cuh, the tests have a stand-in for this file.
#pragma once
#include <ptx.cuh>

typedef unsigned long long u64;

// A tensor as TMA sees it (CUtensorMap): made by the host, opaque.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

#define CLUSTER(size) __cluster_dims__(size, 1, 1)
#define DYNAMIC_SHARED_1024(name) extern __shared__ __align__(1024) char name[]
// For kernel arguments that hold tensor maps: TMA reads them where they are.
#define GRID_CONSTANT(TYPE) const __grid_constant__ TYPE

DEVICE u32 shared_address(const void* at) {
    return (u32)__cvta_generic_to_shared(at);
}

// This block's rank in its cluster.
DEVICE int cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}

// The two halves of a barrier over all threads of the cluster. Writes before `arrive` are visible after `wait`. Whole
// warps call it.
DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// An mbarrier in shared memory. A phase completes after so many arrivals and as many bytes as were announced.
struct Barrier {
    u64 state;

    DEVICE void init(int count) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count) : "memory");
    }
    DEVICE void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
    }
    DEVICE void arrive_and_expect(int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                     : "memory");
    }
    // Arrives at the same barrier of another block of the cluster.
    DEVICE void arrive_at(int rank) {
        asm volatile(
            "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];}"
            :
            : "r"(shared_address(this)), "r"(rank)
            : "memory");
    }
    // Waits for the end of phase `number`: 0, 1, and so on. No thread may be two phases behind.
    DEVICE void wait(int number) {
        u32 is_over;
        do {
            asm volatile(
                "{.reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over;}"
                : "=r"(is_over)
                : "r"(shared_address(this)), "r"(number & 1)
                : "memory");
        } while (!is_over);
    }
    // The same, for data and arrivals from other blocks of the cluster.
    DEVICE void wait_cluster(int number) {
        u32 is_over;
        do {
            asm volatile(
                "{.reg .pred over; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;"
                "selp.u32 %0, 1, 0, over;}"
                : "=r"(is_over)
                : "r"(shared_address(this)), "r"(number & 1)
                : "memory");
        } while (!is_over);
    }
};

// Makes initialized barriers visible to the other blocks and to TMA.
DEVICE void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Loads a box of a matrix into shared memory; its bytes are counted at `full`. Rows beyond the matrix are zeros. Within
// the 128 bytes of a row, pieces of 16 bytes are swizzled: piece p of row r lies at p ^ r % 8.
DEVICE void tma_load(void* to, const TensorMap& map, int column, int row, Barrier& full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        :
        : "r"(shared_address(to)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(&full))
        : "memory");
}

// Eviction policies of the second-level cache.
DEVICE u64 policy_evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE u64 policy_evict_normal() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// The same for a tensor of four dimensions, from `outermost` and `column` on; the two dimensions between are loaded
// whole.
DEVICE void tma_load(void* to, const TensorMap& map, int column, int outermost, Barrier& full, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %5, %5, %3}], [%4], %6;"
        :
        : "r"(shared_address(to)), "l"(&map), "r"(column), "r"(outermost), "r"(shared_address(&full)), "r"(0),
          "l"(policy)
        : "memory");
}

// Stores four floats to the same address of another block's shared memory; 16 bytes are counted at its barrier.
DEVICE void store_async(int rank, float4* to, float a, float b, float c, float d, Barrier& arrived) {
    asm volatile(
        "{.reg .b32 there, barrier; mapa.shared::cluster.u32 there, %0, %6; mapa.shared::cluster.u32 barrier, %1, %6;"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%2, %3, %4, %5}, [barrier];}"
        :
        : "r"(shared_address(to)), "r"(shared_address(&arrived)), "f"(a), "f"(b), "f"(c), "f"(d), "r"(rank)
        : "memory");
}

// The matrix descriptor of a tile of 64 columns that `tma_load` has loaded; its address is a multiple of 1,024 bytes.
// Groups of eight rows are 1,024 bytes apart. Sixteen columns further: + 2.
DEVICE u64 matrix_descriptor(const void* at) {
    return (u64)((shared_address(at) & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Before the first of several wgmmas; the accumulators must not be touched until `wgmma_wait`.
DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most so many committed groups are still running.
template <int NUM>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NUM) : "memory");
}

// Keeps reads of the accumulators behind this point: the compiler believes them ready as soon as they are requested.
template <int SIZE>
DEVICE void fence_registers(float (&acc)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) asm volatile("" : "+f"(acc[i])::"memory");
}

#if IS_BF16
#define WGMMA_TYPES "f32.bf16.bf16"
#else
#define WGMMA_TYPES "f32.f16.f16"
#endif
#define ACC_8(i)                                                                                            \
    "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]), \
        "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define ACC_16(i) ACC_8(i), ACC_8(i + 8)
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// acc[64 x COLUMNS] = a[64 x 16] * b[COLUMNS x 16]^T, added to the old values if `accumulate`, by a warp group (four
// warps, the first one a multiple of four). Thread (warp, lane) holds rows 16 * warp + lane / 4 and 8 below it, of
// columns 8 * j + 2 * (lane % 4) and the next: acc[4 * j], [4 * j + 1] of the upper row, [4 * j + 2], [4 * j + 3] of
// the lower.
#define WGMMA(COLUMNS, NAMES, A, B, ACCUMULATE, ...)                                                           \
    DEVICE void wgmma(float (&acc)[COLUMNS / 2], u64 a, u64 b, bool accumulate) {                              \
        asm volatile("{.reg .pred accumulate; setp.ne.b32 accumulate, " ACCUMULATE                             \
                     ", 0;"                                                                                    \
                     "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16." WGMMA_TYPES " {" NAMES "}, " A ", " B \
                     ", accumulate, 1, 1, 0, 0;}"                                                              \
                     : __VA_ARGS__                                                                             \
                     : "l"(a), "l"(b), "r"((int)accumulate));                                                  \
    }
WGMMA(32, NAMES_16, "%16", "%17", "%18", ACC_16(0))
WGMMA(64, NAMES_32, "%32", "%33", "%34", ACC_16(0), ACC_16(16))
WGMMA(96, NAMES_48, "%48", "%49", "%50", ACC_16(0), ACC_16(16), ACC_16(32))
WGMMA(128, NAMES_64, "%64", "%65", "%66", ACC_16(0), ACC_16(16), ACC_16(32), ACC_16(48))
