// Races between CUDA threads: two accesses to a byte, one of them a write, with nothing that orders them. What the
// compiler calls for its thread sanitizer comes here instead. What orders is what the memory model says, not what
// fibers happen to do: `__syncwarp`, `__syncthreads`, and fences around atomic operations; not shuffles, votes and
// products, behind which other lanes' writes need not be visible. (FastTrack, PLDI 2009, with whole clocks.)
// Without WATCHES_RACES there is nothing to it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <vector>

#ifdef WATCHES_RACES
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))
constexpr bool WATCHES = true;
#else
#define UNWATCHED
constexpr bool WATCHES = false;
#endif

// While there is one, accesses are the watcher's own, in library code that the compiler watches as well.
struct Unwatched {
    inline static int num = 0;
    UNWATCHED Unwatched() { num++; }
    UNWATCHED ~Unwatched() { num--; }
};

// Thread of the grid -> how much of its work is known to have happened.
using Clock = std::vector<uint32_t>;

UNWATCHED inline void join(Clock& into, const Clock& other) {
    if (into.size() < other.size()) into.resize(other.size());
    for (size_t i = 0; i < other.size(); i++)
        if (into[i] < other[i]) into[i] = other[i];
}

// What a thread knows: now, at its last fence, and what its next fence will show it.
struct Knowledge {
    unsigned thread = 0;
    Clock now, fenced, observed;

    UNWATCHED void begin(unsigned number, unsigned num_threads) {
        if (!WATCHES) return;
        Unwatched unwatched;
        thread = number;
        now.assign(num_threads, 0);
        now[number] = 1;
        fenced.clear();
        observed.clear();
    }

    UNWATCHED void fence() {
        if (!WATCHES) return;
        Unwatched unwatched;
        join(now, observed);
        fenced = now;
        now[thread]++;
    }

    // Arrive where threads wait for each other.
    UNWATCHED void tell(Clock& all, bool is_first) {
        if (!WATCHES) return;
        Unwatched unwatched;
        if (is_first) all.clear();
        join(all, now);
        now[thread]++;
    }

    UNWATCHED void learn(const Clock& all) {
        if (!WATCHES) return;
        Unwatched unwatched;
        join(now, all);
    }
};

class Races {
  public:
    enum Kind { READ, WRITE, ATOMIC };

    UNWATCHED void clear() {
        Unwatched unwatched;
        suspect.at = nullptr;
        bytes.clear();
        passed_by.clear();
    }

    // Of memory that is another one from here on.
    UNWATCHED void forget(const void* begin, const void* end) {
        Unwatched unwatched;
        std::erase_if(
            bytes, [=](const auto& entry) { return (uintptr_t)begin <= entry.first && entry.first < (uintptr_t)end; });
    }

    UNWATCHED void access(const void* begin, size_t size, Kind kind, const Knowledge& by) {
        Unwatched unwatched;
        settle();
        for (size_t i = 0; i < size; i++) {
            Clock(&before)[3] = bytes[(uintptr_t)begin + i].last;
            for (Kind other : {READ, WRITE, ATOMIC}) {
                if (kind == other && kind != WRITE) continue;
                // An atomic operation of its own comes behind all that it has counted.
                bool has_counted = other == ATOMIC && by.thread < before[ATOMIC].size() && before[ATOMIC][by.thread];
                if ((kind == READ && other == READ) || has_counted || is_known(before[other], by)) continue;
                suspect = {(const char*)begin, size, {}, other, kind, by.thread};
                // The write comes behind this call: two that leave the same value do no harm.
                if (kind != WRITE || other != WRITE || size > sizeof suspect.values) fail();
                memcpy(suspect.values, begin, size);
            }
            if (kind == WRITE)
                for (Clock& clock : before) clock.clear();
            if (before[kind].size() <= by.thread) before[kind].resize(by.now.size());
            before[kind][by.thread] = by.now[by.thread];
        }
    }

    // An atomic operation hands on what was known at the last fence, and shows the next fence what others handed on.
    UNWATCHED void atomic(const void* variable, Knowledge& by) {
        Unwatched unwatched;
        access(variable, 4, ATOMIC, by);
        Clock& passed = passed_by[(uintptr_t)variable];
        join(by.observed, passed);
        join(passed, by.fenced);
    }

  private:
    struct Byte {
        Clock last[3];  // by kind: thread -> when
    };
    std::unordered_map<uintptr_t, Byte> bytes;
    std::unordered_map<uintptr_t, Clock> passed_by;

    UNWATCHED static bool is_known(const Clock& before, const Knowledge& by) {
        for (size_t i = 0; i < before.size(); i++)
            if (i != by.thread && before[i] > by.now[i]) return false;
        return true;
    }

    struct Suspect {
        const char* at = nullptr;
        size_t size = 0;
        char values[16];
        Kind before = READ, now = READ;
        unsigned thread = 0;
    } suspect;

    UNWATCHED void settle() {
        if (suspect.at && memcmp(suspect.at, suspect.values, suspect.size)) fail();
        suspect.at = nullptr;
    }

    UNWATCHED void fail() const {
        static const char* const names[] = {"read", "write", "atomic operation"};
        fprintf(stderr, "race: nothing orders the %s of thread %u at %p behind another thread's %s\n",
                names[suspect.now], suspect.thread, (const void*)suspect.at, names[suspect.before]);
        abort();
    }
};

#ifdef WATCHES_RACES
void watch(const void* begin, size_t size, Races::Kind kind);

#define WATCH_ACCESSES(size)                                           \
    extern "C" UNWATCHED void __tsan_read##size(void* at) {            \
        watch(at, size, Races::READ);                                  \
    }                                                                  \
    extern "C" UNWATCHED void __tsan_write##size(void* at) {           \
        watch(at, size, Races::WRITE);                                 \
    }                                                                  \
    extern "C" UNWATCHED void __tsan_unaligned_read##size(void* at) {  \
        watch(at, size, Races::READ);                                  \
    }                                                                  \
    extern "C" UNWATCHED void __tsan_unaligned_write##size(void* at) { \
        watch(at, size, Races::WRITE);                                 \
    }
WATCH_ACCESSES(1)
WATCH_ACCESSES(2)
WATCH_ACCESSES(4)
WATCH_ACCESSES(8)
WATCH_ACCESSES(16)
extern "C" UNWATCHED void __tsan_read_range(void* at, size_t size) {
    watch(at, size, Races::READ);
}
extern "C" UNWATCHED void __tsan_write_range(void* at, size_t size) {
    watch(at, size, Races::WRITE);
}
extern "C" UNWATCHED unsigned char __tsan_atomic8_load(const volatile void* at, int) {
    return *(const volatile unsigned char*)at;
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
#endif
