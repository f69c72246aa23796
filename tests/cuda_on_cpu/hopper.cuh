// Stands in for cuda_kernels/csrc/hopper.cuh: the same functions on fibers. TMA loads and stores to other blocks
// complete when all threads wait, the youngest first; a wgmma reads its tiles when it is waited for, the last moment at
// which the tensor cores may.
#pragma once
#include <map>

#include "ptx.cuh"

typedef unsigned long long u64;

#define CLUSTER(size)
#define GRID_CONSTANT(TYPE) const TYPE&
#define DYNAMIC_SHARED_1024(name) char* name = Machine::get().memory()

inline void fail(const char* why) {
    fprintf(stderr, "%s\n", why);
    abort();
}

// A tensor, innermost dimension first; strides in elements.
struct TensorMap {
    const u16* begin;
    int dimensions, sizes[4], box[4];
    i64 strides[4];
};

inline int cluster_rank() {
    return (int)Machine::get().current->block;
}
inline void cluster_arrive() {
    Machine& machine = Machine::get();
    machine.require_together();
    machine.progress++;
    machine.current->cluster_generation = machine.cluster.generation;
    if (++machine.cluster.arrived == machine.cluster.size) machine.cluster.arrived = 0, machine.cluster.generation++;
}
inline void cluster_wait() {
    Machine& machine = Machine::get();
    machine.require_together();
    while (machine.cluster.generation == machine.current->cluster_generation) machine.yield();
}

// Done in a branch that few lanes take. (A single arrival is not: one instruction, which others pass over.)
inline void apart() {
    Machine::get().current->num_apart++;
}

struct Barrier {
    int8_t count, pending;
    int16_t phase;
    int32_t bytes;

    void init(int number) { apart(), count = pending = (int8_t)number, phase = 0, bytes = 0; }
    void check() {
        Machine::get().progress++;
        if (pending < 0) fail("more arrive at a barrier than it is for");
        if (pending == 0 && bytes == 0) pending = count, phase++;
    }
    void arrive() { pending--, check(); }
    void arrive_and_expect(int number) { bytes += number, pending--, check(); }
    void arrive_at(int rank) { Machine::get().at_block(this, rank)->arrive(); }
    void receive(int number) { bytes -= number, check(); }
    void wait(int number) {
        while (phase == (int16_t)number) Machine::get().yield();
        if (phase != (int16_t)(number + 1)) fail("a thread waits for a phase that is not the current one");
    }
    void wait_cluster(int number) { wait(number); }
};
inline void fence_barrier_init() {}

// Copies a box of a tensor to a tile of rows of 64 elements.
inline void copy_box(char* to, const TensorMap& map, const int (&from)[4], Barrier& full) {
    int at[4] = {0, 0, 0, 0}, num_bytes = 0;
    if (map.box[0] != 64 || (uintptr_t)to % 1024) fail("a tile of another shape, or not aligned");
    for (int row = 0; at[map.dimensions - 1] < map.box[map.dimensions - 1]; row++) {
        bool is_inside = true;
        const u16* from_row = map.begin + from[0];
        for (int i = 1; i < map.dimensions; i++) {
            is_inside = is_inside && from[i] + at[i] < map.sizes[i];
            from_row += (from[i] + at[i]) * map.strides[i];
        }
        for (int column = 0; column < 64; column++) {
            int place = 128 * row + 2 * column;
            u16 element = is_inside && from[0] + column < map.sizes[0] ? from_row[column] : 0;
            memcpy(to + (place ^ (row % 8) << 4), &element, 2);
        }
        num_bytes += 128;
        at[1]++;
        for (int i = 1; i + 1 < map.dimensions && at[i] == map.box[i]; i++) at[i] = 0, at[i + 1]++;
    }
    full.receive(num_bytes);
}
inline void tma_load(void* to, const TensorMap& map, int column, int row, Barrier& full) {
    apart();
    if (!Machine::get().current->has_waited) fail("inputs are asked for before they are waited for");
    Machine::get().underway.push_back([=, &map, &full] { copy_box((char*)to, map, {column, row, 0, 0}, full); });
}
inline u64 policy_evict_first() {
    return 0;
}
inline u64 policy_evict_normal() {
    return 0;
}
inline void tma_load(void* to, const TensorMap& map, int column, int outermost, Barrier& full, u64) {
    apart();
    Machine::get().underway.push_back([=, &map, &full] { copy_box((char*)to, map, {column, 0, 0, outermost}, full); });
}

inline void store_async(int rank, float4* to, float a, float b, float c, float d, Barrier& arrived) {
    float4* there = Machine::get().at_block(to, rank);
    Barrier* barrier = Machine::get().at_block(&arrived, rank);
    Machine::get().underway.push_back([=] {
        *there = {a, b, c, d};
        barrier->receive(16);
    });
}

inline u64 matrix_descriptor(const void* at) {
    if ((uintptr_t)at % 1024) fail("a tile is not aligned");
    return (u64)(uintptr_t)at >> 4;
}

// The wgmmas of one thread, in the order in which they were issued.
struct WgmmaQueue {
    std::vector<std::vector<std::function<void()>>> committed;
    std::vector<std::function<void()>> open;

    static WgmmaQueue& of_thread() {
        static std::map<Fiber*, WgmmaQueue> all;
        return all[Machine::get().current];
    }
};
// `.sync.aligned`: no lane goes on before all of its warp have come.
inline void meet_warp() {
    Machine::get().require_together();
    int nothing = 0;
    Machine::get().exchange(&nothing, sizeof nothing);
}
inline void wgmma_fence() {
    meet_warp();
}
inline void wgmma_commit() {
    WgmmaQueue& queue = WgmmaQueue::of_thread();
    queue.committed.push_back(std::move(queue.open));
    queue.open.clear();
}
template <int NUM>
void wgmma_wait() {
    auto& committed = WgmmaQueue::of_thread().committed;
    while (committed.size() > NUM) {
        for (auto& wgmma : committed.front()) wgmma();
        committed.erase(committed.begin());
    }
    meet_warp();
}

template <int SIZE>
void fence_registers(float (&)[SIZE]) {}

template <int SIZE>
void wgmma(float (&acc)[SIZE], u64 a, u64 b, bool accumulate) {
    int warp = Machine::get().current->thread / 32 % 4, lane = Machine::get().lane();
    float* to = acc;
    const u64 memory = (u64)(uintptr_t)Machine::get().memory(), num_bytes = Machine::get().shared_bytes;
    WgmmaQueue::of_thread().open.push_back([=] {
        auto element = [=](u64 tile, int row, int column) {
            u64 place = (tile << 4) + 128 * row + 2 * column;
            if (place < memory || place >= memory + num_bytes) fail("a tile reaches beyond shared memory");
            u16 bits;
            memcpy(&bits, (const void*)(uintptr_t)(place ^ (place >> 7 & 7) << 4), 2);
            return (double)widen(bits);
        };
        for (int i = 0; i < SIZE; i++) {
            int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
            double sum = accumulate ? to[i] : 0.;
            for (int k = 0; k < 16; k++) sum += element(a, row, k) * element(b, column, k);
            to[i] = (float)sum;
        }
    });
}
