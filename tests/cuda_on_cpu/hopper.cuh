// Stands in for cuda_kernels/csrc/hopper.cuh: the same functions on fibers. Copies and stores to other blocks arrive
// when all threads wait, the youngest first; products read their tiles when they are waited for, the last moment at
// which the tensor cores may.
#pragma once
#include <map>

#include "ptx.cuh"

typedef unsigned long long u64;

#define CLUSTER(size)
#define MAP_ARGUMENT(TYPE) const TYPE&
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
inline void arrive_in_cluster() {
    Machine& machine = Machine::get();
    machine.progress++;
    machine.current->cluster_generation = machine.cluster.generation;
    if (++machine.cluster.arrived == machine.cluster.size) machine.cluster.arrived = 0, machine.cluster.generation++;
}
inline void wait_for_cluster() {
    Machine& machine = Machine::get();
    while (machine.cluster.generation == machine.current->cluster_generation) machine.yield();
}

struct Barrier {
    int8_t count, pending;
    int16_t phase;
    int32_t bytes;

    void init(int number) { count = pending = (int8_t)number, phase = 0, bytes = 0; }
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
    void wait_for_cluster(int number) { wait(number); }
};
inline void fence_barriers() {}

// The box's elements, from where it begins, to a tile of rows of 64.
inline void copy_box(char* to, const TensorMap& map, const int (&from)[4], Barrier& full) {
    int at[4] = {0, 0, 0, 0}, num_bytes = 0;
    if (map.box[0] != 64 || (uintptr_t)to % 1024) fail("a tile of another shape, or not aligned");
    for (int row = 0; at[map.dimensions - 1] < map.box[map.dimensions - 1]; row++) {
        bool is_inside = true;
        const u16* line = map.begin + from[0];
        for (int i = 1; i < map.dimensions; i++) {
            is_inside = is_inside && from[i] + at[i] < map.sizes[i];
            line += (from[i] + at[i]) * map.strides[i];
        }
        for (int column = 0; column < 64; column++) {
            int place = 128 * row + 2 * column;
            u16 element = is_inside && from[0] + column < map.sizes[0] ? line[column] : 0;
            memcpy(to + (place ^ (row % 8) << 4), &element, 2);
        }
        num_bytes += 128;
        at[1]++;
        for (int i = 1; i + 1 < map.dimensions && at[i] == map.box[i]; i++) at[i] = 0, at[i + 1]++;
    }
    full.receive(num_bytes);
}
inline void copy_tile(void* to, const TensorMap& map, int column, int row, Barrier& full) {
    if (!Machine::get().current->has_waited) fail("inputs are asked for before they are waited for");
    Machine::get().underway.push_back([=, &map, &full] { copy_box((char*)to, map, {column, row, 0, 0}, full); });
}
inline u64 keep_shortly() {
    return 0;
}
inline u64 keep_as_usual() {
    return 0;
}
inline void copy_tile(void* to, const TensorMap& map, int column, int outermost, Barrier& full, u64) {
    Machine::get().underway.push_back([=, &map, &full] { copy_box((char*)to, map, {column, 0, 0, outermost}, full); });
}

inline void send(int rank, float4* to, float a, float b, float c, float d, Barrier& arrived) {
    float4* there = Machine::get().at_block(to, rank);
    Barrier* barrier = Machine::get().at_block(&arrived, rank);
    Machine::get().underway.push_back([=] {
        *there = {a, b, c, d};
        barrier->receive(16);
    });
}

inline u64 tile_of(const void* at) {
    if ((uintptr_t)at % 1024) fail("a tile is not aligned");
    return (u64)(uintptr_t)at >> 4;
}

// Products of one thread's part, in the order in which they were asked for.
struct Products {
    std::vector<std::vector<std::function<void()>>> committed;
    std::vector<std::function<void()>> open;

    static Products& of_thread() {
        static std::map<Fiber*, Products> all;
        return all[Machine::get().current];
    }
};
inline void begin_products() {}
inline void commit_products() {
    Products& products = Products::of_thread();
    products.committed.push_back(std::move(products.open));
    products.open.clear();
}
template <int NUM>
void wait_products() {
    auto& committed = Products::of_thread().committed;
    while (committed.size() > NUM) {
        for (auto& product : committed.front()) product();
        committed.erase(committed.begin());
    }
}

template <int SIZE>
void keep_behind(float (&)[SIZE]) {}

template <int SIZE>
void multiply_tiles(float (&sums)[SIZE], u64 a, u64 b, bool is_more) {
    int warp = Machine::get().current->thread / 32 % 4, lane = Machine::get().lane();
    float* to = sums;
    const u64 memory = (u64)(uintptr_t)Machine::get().memory(), num_bytes = Machine::get().shared_bytes;
    Products::of_thread().open.push_back([=] {
        auto element = [=](u64 tile, int row, int column) {
            u64 place = (tile << 4) + 128 * row + 2 * column;
            if (place < memory || place >= memory + num_bytes) fail("a tile reaches beyond shared memory");
            u16 bits;
            memcpy(&bits, (const void*)(uintptr_t)(place ^ (place >> 7 & 7) << 4), 2);
            return (double)widen(bits);
        };
        for (int i = 0; i < SIZE; i++) {
            int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
            double sum = is_more ? to[i] : 0.;
            for (int k = 0; k < 16; k++) sum += element(a, row, k) * element(b, column, k);
            to[i] = (float)sum;
        }
    });
}
