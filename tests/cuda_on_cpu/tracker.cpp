// The tracker kernel as a function of a shared library: `library` in tests/tracker_on_cpu.py compiles this file.
#include <ptx.cuh>

#include <tracker.cu>

extern "C" int num_track_words() {
    return sizeof(Track) / 4;
}

// One id for every row, through the kernel itself.
extern "C" void run_track(const i64* ids, const short* kinds, Track* tracks, int2* segments, int2* indexes, int batch,
                          int is_dense, int2* intervals, int max_spans, int* counts, int* positions, int* reports) {
    Machine::get().run({0, 1}, 32, 0, [=] {
        selfspan_track(ids, kinds, tracks, segments, indexes, batch, is_dense, intervals, max_spans, counts, positions,
                       reports);
    });
}

extern "C" void run_follow(const int* ids, const int* places, const int* slots, const int* lengths, const short* kinds,
                           int vocab_size, Track* tracks, int2* segments, int num_queries, int2* intervals,
                           int max_spans, int* counts, int num_blocks) {
    std::vector<unsigned> blocks(num_blocks);
    for (int i = 0; i < num_blocks; i++) blocks[i] = i;
    Machine::get().run(blocks, 32, 0, [=] {
        selfspan_follow(ids, places, slots, lengths, kinds, vocab_size, tracks, segments, num_queries, intervals,
                        max_spans, counts);
    });
}

extern "C" void run_advance(i64* ids, const short* kinds, Track* tracks, const int* scripts, int script_length,
                            const int* limits, int batch, i64* ring, int num_slots, int* step) {
    Machine::get().run({0}, 32, 0, [=] {
        selfspan_advance(ids, kinds, tracks, scripts, script_length, limits, batch, ring, num_slots, step);
    });
}

// A whole stream for one row; intervals [num_ids, max_spans], counts and reports [num_ids].
extern "C" void run_stream(const short* kinds, int num_ids, Track* track, int2* segments, int2* index, int2* intervals,
                           int max_spans, int* counts, int* reports) {
    Row row = {*track, segments, index};
    for (int i = 0; i < num_ids; i++) {
        reports[i] = row.push(kinds[i]);
        counts[i] = row.visible(intervals + i * max_spans, reports[i] & 7, false);
    }
}
