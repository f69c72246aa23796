// One id per row of a batch through the tracker (tracker.cuh), one thread per row; and what was drawn, written down.
//
// Macros: see tracker.cuh.
#include <tracker.cuh>

// One id per row. ids: int64 [batch]; kinds: int16 [vocab]; tracks: [batch]; segments: int32 [batch, NUM_ANCHORS, 2];
// indexes: int32 [batch, MAX_INDEX, 2], or null where no header sees an index. intervals: int32 [batch, max_spans, 2],
// with max_spans at least MAX_INTERVALS, or MAX_INDEX + 1 with indexes, and counts: int32 [batch], as the plan kernel
// takes them. positions: int32 [batch], of the id, or -1 in rows without a sequence. reports: int32 [batch], phase and
// flags. is_dense: everything is visible, whatever the headers name.
extern "C" __global__ void selfspan_track(const i64* ids, const short* kinds, Track* tracks, int2* segments,
                                          int2* indexes, int batch, int is_dense, int2* intervals, int max_spans,
                                          int* counts, int* positions, int* reports) {
    launch_dependents();
    wait_for_prior_grids();
    int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= batch) return;
    int2* index = indexes ? indexes + (i64)number * MAX_INDEX : nullptr;
    Row row = {tracks[number], segments + (i64)number * NUM_ANCHORS, index};
    if (row.track.phase == PHASE_IDLE) {
        counts[number] = 0;
        positions[number] = -1;
        reports[number] = PHASE_IDLE;
        return;
    }
    int report = row.push(kinds[ids[number]]);
    counts[number] = row.visible(intervals + (i64)number * max_spans, report & 7, is_dense);
    positions[number] = row.track.position;
    reports[number] = report;
}

// One id of each query of a step whose rows come in any order. Of query `q`: slots[q], whose state it goes on with, no
// two the same, or -1: it reads everything, lengths[q] tokens, itself included, none where it is padding;
// ids[places[q]], its id. ids: int32; slots, lengths, places: int32 [num_queries]; tracks: [num_slots]; segments: int32
// [num_slots, NUM_ANCHORS, 2]; intervals: int32 [num_queries, max_spans, 2] with max_spans at least MAX_INTERVALS, and
// counts: int32 [num_queries], as the plan kernels take them.
extern "C" __global__ void selfspan_follow(const int* ids, const int* places, const int* slots, const int* lengths,
                                           const short* kinds, int vocab_size, Track* tracks, int2* segments,
                                           int num_queries, int2* intervals, int max_spans, int* counts) {
    launch_dependents();
    wait_for_prior_grids();
    int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= num_queries) return;
    intervals += (i64)number * max_spans;
    int slot = slots[number];
    if (slot < 0) {
        intervals[0] = make_int2(0, lengths[number]);
        counts[number] = lengths[number] > 0;
        return;
    }
    Row row = {tracks[slot], segments + (i64)slot * NUM_ANCHORS, nullptr};
    int token = ids[places[number]];
    int report = row.push(0 <= token && token < vocab_size ? kinds[token] : KIND_TEXT);
    counts[number] = row.visible(intervals, report & 7, false);
}

// Records the id drawn for every row; rows at their end become idle: after the end of the sequence, or where the next
// id would exceed the limit. ids: int64 [batch]; scripts: int32 [batch, script_length], ids that a row has to take at a
// position instead of the drawn one, or -1; limits: int32 [batch], positions that a row may take; ring: int64
// [num_slots, batch], slot `step` % num_slots is written, with -1 for idle rows; the host may read it while later steps
// run. step: int32 [1], is incremented.
extern "C" __global__ void selfspan_advance(i64* ids, const short* kinds, Track* tracks, const int* scripts,
                                            int script_length, const int* limits, int batch, i64* ring, int num_slots,
                                            int* step) {
    launch_dependents();
    wait_for_prior_grids();
    // Unsigned: it may wrap around.
    int slot = (int)((u32)*step % (u32)num_slots);
    __syncthreads();
    for (int row = threadIdx.x; row < batch; row += blockDim.x) {
        Track& track = tracks[row];
        bool is_idle = track.phase == PHASE_IDLE;
        int next = track.position + 1;
        int given = !is_idle && next < script_length ? scripts[(i64)row * script_length + next] : -1;
        if (given >= 0) ids[row] = given;
        ring[(i64)slot * batch + row] = is_idle ? -1 : ids[row];
        if (!is_idle && (kinds[ids[row]] == KIND_EOS || next >= limits[row])) track.phase = PHASE_IDLE;
    }
    if (threadIdx.x == 0) *step = (int)((u32)*step + 1);
}
