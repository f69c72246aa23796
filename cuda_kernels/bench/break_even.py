"""The break-even points: densities and contexts at which the kernel is as fast as dense attention."""

import argparse
from collections.abc import Sequence

import torch

from cuda_kernels.bench.selections import ALL
from cuda_kernels.bench.shape_bench import ShapeBench
from cuda_kernels.bench.shapes import CONTEXTS, FAMILIES, FAMILY_DENSITIES, FAMILY_SELECTION, MAX_FAMILY_SETS, Shape


def break_even(shapes: Sequence[dict]) -> list[dict]:
    """Per shape and selection: the largest density at which the kernel, plan included, beats cuDNN's dense attention.

    Interpolated linearly between the densities measured; None where it never does.
    """
    found = []
    for measured in shapes:
        dense = measured["dense"]["cudnn"].get("us")
        if not dense:
            continue
        names = dict.fromkeys(row["selection"] for row in measured["cases"] if row["selection"] != ALL.name)
        for name in names:
            points = sorted(
                (row["ours"]["kept"], row["ours"]["us_with_plan"])
                for row in measured["cases"]
                if row["selection"] in (name, ALL.name) and "us" in row["ours"]
            )
            found.append({"shape": measured["shape"]["name"], "selection": name, "density": _crossing(points, dense)})
    return found


def measure_contexts(arguments: argparse.Namespace) -> list[dict]:
    """Per family of shapes and density: the shortest context from which on the kernel, plan included, beats cuDNN."""
    found = []
    for num_heads, num_kv_heads, batch in FAMILIES:
        points = []
        for context in CONTEXTS:
            shape = Shape(num_heads, num_kv_heads, batch, context)
            bench = ShapeBench(shape, arguments.seed, arguments.replays, min(FAMILY_DENSITIES), MAX_FAMILY_SETS)
            point = {"context": context, "cudnn_us": bench.dense()["cudnn"].get("us")}
            for density in FAMILY_DENSITIES:
                point[str(density)] = bench.ours(FAMILY_SELECTION, density)["us_with_plan"]
            points.append(point)
            del bench
            torch.cuda.empty_cache()
        family = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "batch": batch, "points": points}
        family["from_context"] = {str(density): first_context(points, str(density)) for density in FAMILY_DENSITIES}
        found.append(family)
        print(f"  {num_heads}/{num_kv_heads}, batch {batch}: pays from context {family['from_context']}", flush=True)
    return found


def first_context(points: Sequence[dict], density: str) -> int | None:
    """The shortest measured context from which on all are faster than cuDNN; None where not even the longest is."""
    first = None
    for point in reversed(points):
        if not point["cudnn_us"] or not point[density] or point[density] >= point["cudnn_us"]:
            break
        first = point["context"]
    return first


def _crossing(points: Sequence[tuple[float, float]], dense: float) -> float | None:
    below = [point for point in points if point[1] <= dense]
    if not below:
        return None
    index = points.index(below[-1])
    if index == len(points) - 1:
        return 1.0
    (x0, y0), (x1, y1) = points[index], points[index + 1]
    return round(x0 + (x1 - x0) * (dense - y0) / (y1 - y0), 3)
