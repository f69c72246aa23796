// CUDA's execution model on one CPU thread: every CUDA thread is a fiber, and a collective operation of a warp, a block
// or a cluster lets the other fibers run until all have arrived. Asynchronous copies, and stores to other blocks,
// happen as late as possible. Slow, and exact about who waits for whom: enough to run the kernels' own source in tests.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "races.h"

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

// Where this library's static variables lie.
extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;

// A barrier of a warp or a block. Two buffers: a fiber can be one collective ahead of the slowest, never two.
struct Meeting {
    unsigned size = 0, arrived = 0;
    uint64_t generation = 0;
    uint64_t values[2][32][2];
    Clock known[2];  // to all who have arrived
};

struct Fiber {
    ucontext_t beginning;
    jmp_buf place;
    std::unique_ptr<char[]> stack;
    unsigned thread = 0, block = 0;  // in its block, in its cluster
    uint64_t cluster_generation = 0;
    bool begun = false, done = false;
    bool has_waited = false;    // for what the kernel before writes
    unsigned num_apart = 0;     // what it has done since its warp last met that not all of its lanes may have
    unsigned num_together = 0;  // instructions so far that a warp's lanes have to execute together
    Knowledge knowledge;
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps, blocks;
    Meeting cluster;
    jmp_buf scheduler;
    Fiber* current = nullptr;
    std::function<void()> kernel;
    std::vector<std::unique_ptr<char, decltype(&free)>> shared;  // of every block of the cluster
    size_t shared_bytes = 0;
    unsigned first_block = 0, block_row = 0, threads_per_block = 0;
    Dim grid_size;
    std::vector<std::function<void()>> underway;
    // A warp of the cluster that runs only when nothing else can, or -1; of it, one lane, or -1: all of them.
    int starved = -1, starved_lane = -1;
    std::map<std::pair<unsigned, unsigned>, unsigned> apart;  // of a warp's instructions: num_apart of who came first
    bool streams_constants =
        false;  // streamed data are weights, which may be read before the kernel before has finished
    uint64_t progress = 0;
    uint64_t drawn = 1;  // the order in which threads run: another one every time, the same in every process
    unsigned num_begun = 0, num_in_grid = 0;  // threads
    Races races;
    inline static Machine* running = nullptr;

    static constexpr size_t STACK_BYTES = 256 * 1024;

    // Not swapcontext, which asks the kernel for the signal mask, twice a switch: that took most of the tests' time.
    void yield() {
        if (!_setjmp(current->place)) _longjmp(scheduler, 1);
    }

    void resume(Fiber& fiber) {
        current = &fiber;
        if (_setjmp(scheduler)) {
            current = nullptr;
            return;
        }
        if (fiber.begun) _longjmp(fiber.place, 1);
        fiber.begun = true;
        setcontext(&fiber.beginning);
    }

    unsigned lane() const { return current->thread % 32; }
    Dim block_index() const { return {first_block + current->block, block_row}; }
    Meeting& block() { return blocks[current->block]; }
    char* memory() const { return shared[current->block].get(); }

    // The same address in another block's shared memory, which has to exist still.
    template <class T>
    T* at_block(T* mine, unsigned other) {
        bool is_there = false;
        for (const Fiber& fiber : fibers) is_there |= fiber.block == other && !fiber.done;
        size_t offset = (char*)mine - memory();
        if (is_there && offset < shared_bytes) return (T*)(shared[other].get() + offset);
        fprintf(stderr, "a thread reaches for shared memory that is not there\n");
        abort();
    }

    // Leave a value of up to 16 bytes, wait for all others of the warp, and return what they left. Whether their other
    // writes can be relied on behind it, too, is another matter.
    const uint64_t (*exchange(const void* value, size_t bytes, bool orders_memory = false))[2] {
        Meeting& warp = warps[(current->block * threads_per_block + current->thread) / 32];
        uint64_t generation = warp.generation;
        memcpy(warp.values[generation % 2][lane()], value, bytes);
        wait(warp, generation, orders_memory);
        current->num_apart = 0;
        return warp.values[generation % 2];
    }

    void wait(Meeting& meeting, uint64_t generation, bool orders_memory = true) {
        progress++;
        Clock& known = meeting.known[generation % 2];
        Fiber* mine = current;
        if (orders_memory) mine->knowledge.tell(known, meeting.arrived == 0);
        if (++meeting.arrived == meeting.size) {
            meeting.arrived = 0;
            meeting.generation++;
        } else {
            while (meeting.generation == generation) yield();
        }
        if (orders_memory) mine->knowledge.learn(known);
    }

    // Whether an address is the stand-in's own, or one that only the running thread knows.
    UNWATCHED bool is_own(const void* at) const {
        auto in = [at](const void* begin, size_t size) { return at >= begin && at < (const char*)begin + size; };
        return in(this, sizeof *this) || in(current->stack.get(), STACK_BYTES) ||
               in(fibers.data(), fibers.size() * sizeof(Fiber)) || in(warps.data(), warps.size() * sizeof(Meeting)) ||
               in(blocks.data(), blocks.size() * sizeof(Meeting));
    }

    static void enter() {
        Machine& machine = get();
        machine.kernel();
        machine.current->done = true;
        machine.progress++;
        machine.yield();
    }

    UNWATCHED static Machine& get() {
        static Machine machine;
        return machine;
    }

    void run_cluster(unsigned num_blocks) {
        unsigned num_threads = num_blocks * threads_per_block;
        warps.assign(num_threads / 32, Meeting{});
        for (Meeting& warp : warps) warp.size = 32;
        blocks.assign(num_blocks, Meeting{});
        for (Meeting& block : blocks) block.size = threads_per_block;
        apart.clear();
        cluster = Meeting{};
        cluster.size = num_threads;
        fibers.resize(num_threads);
        for (unsigned number = 0; number < num_threads; number++) begin(fibers[number], number);
        auto is_done = [&] {
            for (Fiber& fiber : fibers)
                if (!fiber.done) return false;
            return underway.empty();
        };
        while (!is_done()) {
            if (resume_all(false)) continue;
            // All others wait: the youngest operation in flight completes.
            if (!underway.empty()) {
                auto arrive = std::move(underway.back());
                underway.pop_back();
                arrive();
            } else if (!resume_all(true)) {
                fprintf(stderr, "deadlock: some threads wait for others that are done or wait elsewhere\n");
                abort();
            }
        }
    }

    bool is_starved(const Fiber& fiber) const {
        int number = fiber.block * threads_per_block + fiber.thread;
        return number / 32 == starved && (starved_lane < 0 || number % 32 == starved_lane);
    }

    // An instruction that PTX calls aligned: all lanes of a warp execute it together. They are not together where some
    // have been elsewhere since the warp last met: the hardware may then wait for ever, or for others.
    void require_together() {
        Fiber& fiber = *current;
        unsigned warp = (fiber.block * threads_per_block + fiber.thread) / 32;
        auto [first, is_new] = apart.try_emplace({warp, fiber.num_together++}, fiber.num_apart);
        if (first->second == fiber.num_apart) return;
        fprintf(stderr, "a warp's lanes come apart to an instruction that they execute together\n");
        abort();
    }

    // Runs the threads of the starved warp, or all others, up or down from any of them: what a thread reads of another
    // without waiting for it is not there, sooner or later. Returns whether any made progress.
    bool resume_all(bool are_starved) {
        uint64_t before = progress;
        drawn = drawn * 6364136223846793005 + 1442695040888963407;
        bool runs_down = drawn >> 63;
        size_t num = fibers.size(), first = (drawn >> 32) % num;
        for (size_t i = 0; i < num; i++) {
            Fiber& fiber = fibers[(runs_down ? first + num - i : first + i) % num];
            if (!fiber.done && is_starved(fiber) == are_starved) resume(fiber);
        }
        return before != progress;
    }

    void begin(Fiber& fiber, unsigned number) {
        if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
        fiber.thread = number % threads_per_block, fiber.block = number / threads_per_block;
        fiber.begun = fiber.done = fiber.has_waited = false;
        fiber.num_apart = fiber.num_together = 0;
        fiber.knowledge.begin(num_begun++, num_in_grid);
        getcontext(&fiber.beginning);
        fiber.beginning.uc_stack.ss_sp = fiber.stack.get();
        fiber.beginning.uc_stack.ss_size = STACK_BYTES;
        fiber.beginning.uc_link = nullptr;  // it never returns
        makecontext(&fiber.beginning, enter, 0);
    }

    // `order`: the blocks, or the first blocks of clusters, in the order in which they run.
    void run(const std::vector<unsigned>& order, unsigned num_threads, size_t num_shared_bytes,
             std::function<void()> work, unsigned blocks_per_cluster = 1) {
        kernel = std::move(work);
        threads_per_block = num_threads;
        grid_size.x = (unsigned)order.size() * blocks_per_cluster;
        shared_bytes = num_shared_bytes;
        num_begun = 0, num_in_grid = grid_size.x * num_threads;
        races.clear();
        running = this;
        size_t whole_kib = (shared_bytes / 1024 + 1) * 1024;
        for (unsigned index : order) {
            shared.clear();
            for (unsigned block = 0; block < blocks_per_cluster; block++) {
                shared.emplace_back((char*)aligned_alloc(1024, whole_kib), &free);
                // A block must not rely on what it finds in shared memory.
                memset(shared.back().get(), 0xff, whole_kib);
            }
            forget_shared();
            first_block = index;
            run_cluster(blocks_per_cluster);
        }
    }

    // Another block's shared memory is another one, also where `__shared__` stands for the same static variables.
    UNWATCHED void forget_shared() {
        if (!WATCHES) return;
        for (auto& memory : shared) races.forget(memory.get(), memory.get() + shared_bytes);
        races.forget(&__bss_start, &_end);
    }
};

#ifdef WATCHES_RACES
UNWATCHED inline void watch(const void* begin, size_t size, Races::Kind kind) {
    Machine* machine = Machine::running;  // not `get`, in which this is called
    if (Unwatched::num || !machine || !machine->current) return;
    Unwatched unwatched;
    if (machine->is_own(begin)) return;
    machine->races.access(begin, size, kind, machine->current->knowledge);
}
#endif
