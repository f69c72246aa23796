// The kernels alone, without a framework, for compute-sanitizer:
//   nvcc -arch=native -std=c++17 -I cuda_kernels/csrc -DHEAD_DIM=128 -DGROUP=4 -DIS_BF16=1 -DNUM_WARPS=4
//       -DNUM_QUERIES=1 cuda_kernels/csrc/check.cu -o check
//   compute-sanitizer --tool memcheck ./check && compute-sanitizer --tool racecheck ./check
// With several queries per row: also -DNUM_QUERIES=2 (8 columns), 8 (32) and 9 (two column blocks, the second not
// full).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <plan.cu>
#include <attention.cu>

#define CHECK(call)                                                                  \
    do {                                                                             \
        cudaError_t error = (call);                                                  \
        if (error != cudaSuccess) {                                                  \
            printf("%s, line %d: %s\n", #call, __LINE__, cudaGetErrorString(error)); \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

template <class T>
T* on_device(const std::vector<T>& host) {
    T* device;
    CHECK(cudaMalloc(&device, host.size() * sizeof(T)));
    CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return device;
}

template <class T>
std::vector<T> on_host(const T* device, size_t count) {
    std::vector<T> host(count);
    CHECK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}

#if !IS_BF16
#error "this program makes its own numbers in bfloat16"
#endif
static float widened(u16 bits) {
    u32 word = (u32)bits << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
}
static u16 random_element() {
    float x = 2.f * rand() / RAND_MAX - 1.f;
    u32 word;
    memcpy(&word, &x, 4);
    return (u16)(word >> 16);
}

const int capacity = 500, max_spans = 64;

// Whether a query of a row sees a token of an interval: with several queries, none behind its own, and not every
// interval.
static u32 mask_of(int row, size_t interval) {
    return (u32)(0x9e3779b9u * (row + 1) * (interval + 3) >> 7) & ((1u << NUM_QUERIES) - 1);
}
static int position_of(int row) {
    return capacity - 1 - 37 * row;
}
static bool sees(int row, size_t interval, int query, int token) {
    return NUM_QUERIES == 1 || (mask_of(row, interval) >> query & 1 && token <= position_of(row) + query);
}

// Three times in a row, plan and two launches of it; every answer against plain C++.
static bool is_right(const std::vector<std::vector<int2>>& rows) {
    const int num_kv_heads = 2, num_heads = num_kv_heads * GROUP, num_blocks = 7;  // work blocks
    const float scale = 0.1f;
    const int batch = (int)rows.size();
    std::vector<int2> intervals(batch * max_spans, int2{-9, -9});
    std::vector<u32> masks(batch * max_spans, ~0u);
    std::vector<int> counts, positions;
    for (int row = 0; row < batch; row++) {
        for (size_t i = 0; i < rows[row].size(); i++) {
            intervals[row * max_spans + i] = rows[row][i];
            masks[row * max_spans + i] = mask_of(row, i);
        }
        counts.push_back((int)rows[row].size());
        positions.push_back(position_of(row));
    }
    std::vector<u16> queries(batch * NUM_QUERIES * num_heads * HEAD_DIM),
        keys(batch * num_kv_heads * capacity * HEAD_DIM), values(keys.size());
    for (auto* tensor : {&queries, &keys, &values})
        for (u16& element : *tensor) element = random_element();

    auto* d_intervals = on_device(intervals);
    auto* d_spans = on_device(std::vector<Span>(intervals.size(), Span{}));
    auto* d_masks = on_device(masks);
    auto* d_positions = on_device(positions);
    auto *d_counts = on_device(counts), *d_errors = on_device(counts);
    const int schedule_words = sizeof(Schedule) / 4 + 3 * batch + 1;  // as Schedule::num_words, which is for the device
    auto *d_schedule = on_device(std::vector<int>(schedule_words, -9)), *d_num_done = on_device(std::vector<int>(1, 0));
    auto* d_arrived = on_device(std::vector<int>(COLUMN_BLOCKS * batch * num_kv_heads, 0));
    auto *d_queries = on_device(queries), *d_keys = on_device(keys), *d_values = on_device(values);
    auto* d_out = on_device(std::vector<u16>(queries.size(), 0x7fff));
    auto* d_lse = on_device(std::vector<float>(batch * NUM_QUERIES * num_heads, NAN));
    auto* d_partials = on_device(std::vector<float>(
        COLUMN_BLOCKS * (batch * num_kv_heads + num_blocks * (IS_WIDE ? 1 + NUM_WARPS : 1)) * PARTIAL_FLOATS, NAN));
    const int shared_bytes = (int)sizeof(SharedStorage) - (int)sizeof(Schedule) + 4 * schedule_words;
    CHECK(cudaFuncSetAttribute(selfspan_attention, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    const i64 head = HEAD_DIM, cache = (i64)capacity * HEAD_DIM;
    for (int repeat = 0; repeat < 3; repeat++) {
        // In one block, and in one per row.
        bool is_one = repeat == 1;
        selfspan_plan<<<is_one ? 1 : batch, is_one ? 96 : max_spans>>>(
            d_intervals, d_counts, batch, max_spans, capacity, d_spans, d_schedule, d_arrived, d_num_done, num_kv_heads,
            num_blocks, d_errors, d_masks, d_positions);
        CHECK(cudaGetLastError());
        for (int layer = 0; layer < 2; layer++)
            selfspan_attention<<<num_blocks * COLUMN_BLOCKS, NUM_THREADS, shared_bytes>>>(
                d_queries, NUM_QUERIES * num_heads * head, head, d_keys, num_kv_heads * cache, cache, head, d_values,
                num_kv_heads * cache, cache, head, d_out, NUM_QUERIES * num_heads * head, head, d_lse, d_spans,
                d_schedule, batch, max_spans, scale * 1.44269504f, d_partials, d_arrived, layer > 0, num_heads * head,
                num_heads * head);
        CHECK(cudaGetLastError());
        CHECK(cudaDeviceSynchronize());
    }
    auto out = on_host(d_out, queries.size());
    double worst = 0;
    for (int row = 0; row < batch; row++) {
        for (int query_head = 0; query_head < NUM_QUERIES * num_heads; query_head++) {
            const int q = query_head / num_heads, h = query_head % num_heads;
            const size_t vector = (size_t)(row * NUM_QUERIES * num_heads + query_head) * HEAD_DIM;
            std::vector<double> sum(HEAD_DIM, 0.0);
            double total = 0;
            const u16* query = &queries[vector];
            for (size_t i = 0; i < rows[row].size(); i++) {
                for (int t = rows[row][i].x; t < rows[row][i].y; t++) {
                    if (!sees(row, i, q, t)) continue;
                    size_t at = ((size_t)(row * num_kv_heads + h / GROUP) * capacity + t) * HEAD_DIM;
                    double score = 0;
                    for (int d = 0; d < HEAD_DIM; d++) score += (double)widened(query[d]) * widened(keys[at + d]);
                    double weight = exp(score * scale);
                    total += weight;
                    for (int d = 0; d < HEAD_DIM; d++) sum[d] += weight * widened(values[at + d]);
                }
            }
            for (int d = 0; d < HEAD_DIM; d++) {
                double expected = total > 0 ? sum[d] / total : 0;
                double error = fabs(expected - widened(out[vector + d]));
                worst = error >= worst ? error : worst;
                if (error != error) worst = INFINITY;
            }
        }
    }
    printf("max_score error %.5f: %s\n", worst, worst < 0.01 ? "right" : "WRONG");
    return worst < 0.01;
}

int main() {
    // Rows of very different lengths: row-heads span warps and blocks.
    std::vector<std::vector<int2>> rows(5), equal_rows(5, {{7, 20}, {100, 127}});
    rows[0] = {{0, capacity}};
    for (int i = 0; i < max_spans; i++) rows[1].push_back({7 * i + 2, 7 * i + 2 + 1 + i % 5});
    rows[3] = {{499, 500}};
    rows[4] = {{3, 20}, {20, 21}, {100, 333}};
    // Rows of equal length: whole row-heads are assigned, two warps to each.
    return is_right(rows) && is_right(equal_rows) ? 0 : 1;
}
