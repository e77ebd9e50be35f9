"""What flow repair mends, and what it costs: ``python -m tests.bench.repair``, with images by ``--data FOLDER``.

For each network, ratio and mode: what was dead, what has moved, what is dead then (found a second way), and whether the
new edges have a gradient on a training batch. An edge is silent there if its input and its unit are never both awake.
"""

import argparse
import time

import torch
from torch import Tensor

from dst.config.schema import complete
from dst.run.build import build
from tests.bench.step import CONF
from tests.composed import compose_cells
from tests.sparsity.reachable import problems, silent_edges

NETWORKS = (("vgg16", 0.001), ("resnet18", 0.001), ("wrn_22_2", 0.005))
RATIOS = ("uniform", "er", "erk", "balanced", "pyramidal", "snip", "synflow")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder of images (train/ and test/); without it digits, enlarged")
    parser.add_argument("--ratios", nargs="*", default=RATIOS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    given = ["data.size=32", "sparsity=static", "schedule.batch_size=128", "tracking=none"]
    given += ["data=digits"] if options.data is None else ["data=image_folder", f"data.root={options.data}"]
    print(f"torch {torch.__version__}, {options.threads} threads")
    for model, density in NETWORKS:
        for ratio in options.ratios:
            chosen = [f"model={model}", f"sparsity.density={density}", f"sparsity.distribution.name={ratio}"]
            _built([*given, *chosen], options.threads)  # the first pass through a network takes longer
            before, first, _ = _built([*given, *chosen], options.threads)
            masks = before.sparsifier.topology.masks
            for flow in ("add", "move"):
                run, took, shape = _built([*given, *chosen, f"sparsity.repair.flow={flow}"], options.threads)
                print(f"{model} {ratio} {flow}: {_told(run, shape, masks)}; {took - first:.1f} s", flush=True)


def _built(overrides: list[str], threads: int):
    """Return a run at its first step, the seconds that it took to build, and the shape of its inputs."""
    ((_, config),) = compose_cells(CONF, overrides, multirun=False)
    config.hardware.threads = threads
    began = time.perf_counter()
    parts = build(complete(config))
    return parts.training, time.perf_counter() - began, parts.dataset.shape


def _told(run, shape: tuple[int, int, int], before: list[Tensor]) -> str:
    sparsifier = run.sparsifier
    layers, masks, rows = sparsifier.topology.layers, sparsifier.topology.masks, sparsifier.mended.flow
    sums = {name: sum(getattr(row, name) for row in rows) for name in vars(rows[0]) if name != "layer"}
    dead = problems(run.model, shape, layers, masks)
    images, labels = next(iter(run.train_batches.epoch(0)))
    silent = silent_edges(run.model, layers, images, labels)
    new = [now & ~was for now, was in zip(masks, before, strict=True)]
    counts = dict.fromkeys(("zero", "with a gradient", "silent", "neither"), 0)
    for layer, mask, quiet in zip(layers, new, silent, strict=True):
        moves = layer.weight.grad != 0
        counts["zero"] += int((mask & (layer.weight == 0)).sum())
        counts["with a gradient"] += int((mask & moves).sum())
        counts["silent"] += int((mask & ~moves & quiet).sum())
        counts["neither"] += int((mask & ~moves & ~quiet).sum())
    edges = f"{sum(int(mask.sum()) for mask in before):,} -> {sum(int(mask.sum()) for mask in masks):,} edges"
    told = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in sums.items())
    fresh = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    return f"{edges}, {told}; then dead: {', '.join(dead) or 'nothing'}; new edges: {fresh}"


if __name__ == "__main__":
    main()
