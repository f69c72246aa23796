// The wide linear kernel as a function of a shared library: `library` in tests/test_gemm_wgmma.py compiles this file.
#include <hopper.cuh>

#include <gemm_wgmma.cu>

extern "C" void run_linear_wide(const u16* x, const u16* weight, const u16* bias, int batch, int num_rows, int depth,
                                int are_gated, int num_passes, int max_units, int num_stages, int num_clusters,
                                int shared_bytes, u16* out, int starved_warp) {
    TensorMap x_map = {x, 2, {depth, batch}, {STAGE_DEPTH, BATCH_TILE}, {1, depth}};
    // The two eights of a unit: neighbours, or half of the rows apart.
    i64 eight = 8 * (i64)depth, to_second = are_gated ? (i64)num_rows / 2 * depth : eight;
    WeightMaps maps;
    for (int units = 1; units <= UNITS; units++)
        maps.of_units[units - 1] = {weight,
                                    4,
                                    {depth, 8, 2, num_rows / UNIT_ROWS},
                                    {STAGE_DEPTH, 8, 2, units},
                                    {1, depth, to_second, are_gated ? eight : 2 * eight}};
    std::vector<unsigned> order(num_clusters);
    for (int i = 0; i < num_clusters; i++) order[i] = i * NUM_BLOCKS;
    Machine::get().starved = starved_warp;
    Machine::get().run(
        order, NUM_THREADS, shared_bytes,
        [=, &x_map, &maps] {
            selfspan_linear_wide(x_map, maps, bias, batch, num_rows, depth, are_gated, num_passes, max_units,
                                 num_stages, out);
        },
        NUM_BLOCKS);
}
