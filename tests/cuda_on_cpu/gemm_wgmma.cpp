// The wgmma GEMM as a function of a shared library: `library` in tests/test_gemm_wgmma.py compiles this file.
#include <hopper.cuh>

#include <gemm_wgmma.cu>

extern "C" void run_linear_wgmma(const u16* x, const u16* weight, const u16* bias, int batch, int num_rows, int depth,
                                 int is_gated, int num_passes, int max_warp_tiles, int num_stages, int num_clusters,
                                 int shared_bytes, u16* out, int starved_warp, int starved_lane) {
    TensorMap x_map = {x, 2, {depth, batch}, {TILE_K, BATCH_TILE}, {1, depth}};
    // The two halves of a warp tile, eight rows each: neighbours, or half of W's rows apart.
    i64 eight = 8 * (i64)depth, to_second = is_gated ? (i64)num_rows / 2 * depth : eight;
    WeightMaps maps;
    for (int count = 1; count <= WARPS_PER_GROUP; count++)
        maps.boxes[count - 1] = {weight,
                                 4,
                                 {depth, 8, 2, num_rows / WARP_TILE_ROWS},
                                 {TILE_K, 8, 2, count},
                                 {1, depth, to_second, is_gated ? eight : 2 * eight}};
    std::vector<unsigned> order(num_clusters);
    for (int i = 0; i < num_clusters; i++) order[i] = i * CLUSTER_SIZE;
    Machine::get().starved = starved_warp, Machine::get().starved_lane = starved_lane;
    Machine::get().run(
        order, NUM_THREADS, shared_bytes,
        [=, &x_map, &maps] {
            selfspan_linear_wgmma(x_map, maps, bias, batch, num_rows, depth, is_gated, num_passes, max_warp_tiles,
                                  num_stages, out);
        },
        CLUSTER_SIZE);
}
