// CUDA's execution model on one CPU thread: every CUDA thread is a fiber, and a warp's or block's collective operation
// lets the others run until all have arrived. Slow and exact about who waits for whom: enough to run the kernels' own
// source in tests.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

// One meeting point of a warp or a block. Two buffers: a fiber can be one collective ahead of the slowest, never two.
struct Meeting {
    unsigned size = 0, arrived = 0;
    uint64_t generation = 0;
    uint64_t values[2][32][2];
};

struct Fiber {
    ucontext_t beginning;
    jmp_buf place;
    std::unique_ptr<char[]> stack;
    unsigned thread = 0;
    bool begun = false, done = false;
    bool has_waited = false;  // for what the kernel before writes
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting block;
    jmp_buf scheduler;
    Fiber* current = nullptr;
    std::function<void()> kernel;
    std::vector<char> shared;
    Dim block_index, grid_size;
    bool streams_constants = false;  // what is streamed are weights, which may be read before anything else is done
    uint64_t progress = 0;

    static constexpr size_t STACK_BYTES = 256 * 1024;

    // Not swapcontext, which asks the kernel for the signal mask, twice a switch: that took most of the tests' time.
    void yield() {
        if (!_setjmp(current->place)) _longjmp(scheduler, 1);
    }

    void resume(Fiber& fiber) {
        current = &fiber;
        if (_setjmp(scheduler)) return;
        if (fiber.begun) _longjmp(fiber.place, 1);
        fiber.begun = true;
        setcontext(&fiber.beginning);
    }

    unsigned lane() const { return current->thread % 32; }

    // Leave a value of up to 16 bytes, wait for all others of the warp, and return what they left.
    const uint64_t (*exchange(const void* value, size_t bytes))[2] {
        Meeting& warp = warps[current->thread / 32];
        uint64_t generation = warp.generation;
        memcpy(warp.values[generation % 2][lane()], value, bytes);
        wait(warp, generation);
        return warp.values[generation % 2];
    }

    void wait(Meeting& meeting, uint64_t generation) {
        progress++;
        if (++meeting.arrived == meeting.size) {
            meeting.arrived = 0;
            meeting.generation++;
            return;
        }
        while (meeting.generation == generation) yield();
    }

    static void enter() {
        Machine& machine = get();
        machine.kernel();
        machine.current->done = true;
        machine.progress++;
        machine.yield();
    }

    static Machine& get() {
        static Machine machine;
        return machine;
    }

    void run_block(unsigned num_threads) {
        warps.assign(num_threads / 32, Meeting{});
        for (Meeting& warp : warps) warp.size = 32;
        block = Meeting{};
        block.size = num_threads;
        fibers.resize(num_threads);
        for (unsigned thread = 0; thread < num_threads; thread++) {
            Fiber& fiber = fibers[thread];
            if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
            fiber.thread = thread;
            fiber.begun = fiber.done = fiber.has_waited = false;
            getcontext(&fiber.beginning);
            fiber.beginning.uc_stack.ss_sp = fiber.stack.get();
            fiber.beginning.uc_stack.ss_size = STACK_BYTES;
            fiber.beginning.uc_link = nullptr;  // it never returns
            makecontext(&fiber.beginning, enter, 0);
        }
        unsigned num_done = 0;
        while (num_done < num_threads) {
            uint64_t before = progress;
            num_done = 0;
            for (Fiber& fiber : fibers) {
                if (!fiber.done) resume(fiber);
                num_done += fiber.done;
            }
            if (before == progress && num_done < num_threads) {
                fprintf(stderr, "deadlock: some threads wait for others that are done or wait elsewhere\n");
                abort();
            }
        }
    }

    // `order`: the blocks, in the order in which they run.
    void run(const std::vector<unsigned>& order, unsigned num_threads, size_t shared_bytes,
             std::function<void()> work) {
        kernel = std::move(work);
        grid_size.x = (unsigned)order.size();
        for (unsigned index : order) {
            // What a block finds in shared memory is nothing that it may rely on.
            shared.assign(shared_bytes + 16, (char)0xff);
            block_index.x = index;
            run_block(num_threads);
        }
    }
};
