// Instructions of sm_90a that C++ has no name for, one function each: barriers in shared memory that count bytes,
// copies of whole tiles, products of a group of four warps, and a cluster's blocks that write to one another (PTX ISA
// 8.0). Like ptx.cuh, the tests have a stand-in for this file.
#pragma once
#include <ptx.cuh>

typedef unsigned long long u64;

// A tensor as the copy engine knows it (CUtensorMap): made by the host, opaque.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

#define CLUSTER(size) __cluster_dims__(size, 1, 1)
#define DYNAMIC_SHARED_1024(name) extern __shared__ __align__(1024) char name[]
// Holds tensor maps, which the copy engine reads where they are.
#define MAP_ARGUMENT(TYPE) const __grid_constant__ TYPE

DEVICE u32 shared_address(const void* at) {
    return (u32)__cvta_generic_to_shared(at);
}

// This block's number in its cluster.
DEVICE int cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}

// All threads of all blocks of the cluster say that they have come this far, and then wait for all others to say so;
// what was written before the one is seen after the other. Whole warps.
DEVICE void arrive_in_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void wait_for_cluster() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A barrier in shared memory. Its phase is over when so many have arrived, and as many bytes as were announced.
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
    // The same barrier of another block of the cluster.
    DEVICE void arrive_at(int rank) {
        asm volatile(
            "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];}"
            :
            : "r"(shared_address(this)), "r"(rank)
            : "memory");
    }
    // Until phase `number` is over: 0, 1, and so on. Nobody may be two phases behind.
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
    // The same of what other blocks of the cluster send or say.
    DEVICE void wait_for_cluster(int number) {
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

// Barriers are initialized, and other blocks and the copy engine may know it.
DEVICE void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// A box of a matrix comes to shared memory; its bytes arrive at `full`. Rows beyond the matrix are zeros. Of 128 bytes
// that a row has in the box, pieces of 16 change places: piece p of row r stands at p ^ r % 8.
DEVICE void copy_tile(void* to, const TensorMap& map, int column, int row, Barrier& full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        :
        : "r"(shared_address(to)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(&full))
        : "memory");
}

// How long the second-level cache is to keep what is read.
DEVICE u64 keep_shortly() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE u64 keep_as_usual() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// The same of a tensor of four dimensions, from `outermost` and `column` on; of the two between, all.
DEVICE void copy_tile(void* to, const TensorMap& map, int column, int outermost, Barrier& full, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %5, %5, %3}], [%4], %6;"
        :
        : "r"(shared_address(to)), "l"(&map), "r"(column), "r"(outermost), "r"(shared_address(&full)), "r"(0),
          "l"(policy)
        : "memory");
}

// Four floats to the same place of another block's shared memory; 16 bytes arrive at its barrier.
DEVICE void send(int rank, float4* to, float a, float b, float c, float d, Barrier& arrived) {
    asm volatile(
        "{.reg .b32 there, barrier; mapa.shared::cluster.u32 there, %0, %6; mapa.shared::cluster.u32 barrier, %1, %6;"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%2, %3, %4, %5}, [barrier];}"
        :
        : "r"(shared_address(to)), "r"(shared_address(&arrived)), "f"(a), "f"(b), "f"(c), "f"(d), "r"(rank)
        : "memory");
}

// What the tensor cores know of a tile of 64 columns that `copy_tile` brought; its start is a multiple of 1,024 bytes.
// Rows in groups of eight lie 1,024 bytes apart. Sixteen columns further: + 2.
DEVICE u64 tile_of(const void* at) {
    return (u64)((shared_address(at) & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Before the first product of several, whose sums no one else touches until `wait_products`.
DEVICE void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEVICE void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most so many of what was committed are on their way.
template <int NUM>
DEVICE void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NUM) : "memory");
}

// Sums are not looked at before this: to the compiler they are there as soon as they are asked for.
template <int SIZE>
DEVICE void keep_behind(float (&sums)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

#if IS_BF16
#define PRODUCT_TYPES "f32.bf16.bf16"
#else
#define PRODUCT_TYPES "f32.f16.f16"
#endif
#define SUMS_8(i)                                                                                                 \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
        "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SUMS_16(i) SUMS_8(i), SUMS_8(i + 8)
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// sums[64 x COLUMNS] = a[64 x 16] * b[COLUMNS x 16]^T, on top of what they are if `is_more`, by four warps that start
// at a multiple of four. Thread (warp, lane) holds rows 16 * warp + lane / 4 and 8 below it, of columns 8 * j +
// 2 * (lane % 4) and the next: sums[4 * j], [4 * j + 1] of the upper row, [4 * j + 2], [4 * j + 3] of the lower.
#define PRODUCT(COLUMNS, NAMES, A, B, MORE, ...)                                                                 \
    DEVICE void multiply_tiles(float (&sums)[COLUMNS / 2], u64 a, u64 b, bool is_more) {                         \
        asm volatile("{.reg .pred more; setp.ne.b32 more, " MORE                                                 \
                     ", 0;"                                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16." PRODUCT_TYPES " {" NAMES "}, " A ", " B \
                     ", more, 1, 1, 0, 0;}"                                                                      \
                     : __VA_ARGS__                                                                               \
                     : "l"(a), "l"(b), "r"((int)is_more));                                                       \
    }
PRODUCT(32, NAMES_16, "%16", "%17", "%18", SUMS_16(0))
PRODUCT(64, NAMES_32, "%32", "%33", "%34", SUMS_16(0), SUMS_16(16))
PRODUCT(96, NAMES_48, "%48", "%49", "%50", SUMS_16(0), SUMS_16(16), SUMS_16(32))
PRODUCT(128, NAMES_64, "%64", "%65", "%66", SUMS_16(0), SUMS_16(16), SUMS_16(32), SUMS_16(48))
