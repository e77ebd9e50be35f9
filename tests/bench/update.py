"""What training with DSB gains, its updates included: ``python -m tests.bench.update``.

A dense step (no masks), a packed step in blocks, and a packed step with an update, which computes the dense gradient,
regroups rows, chooses columns, moves values and momentum and makes new tables. From these, how many times faster
training is with an update every so many steps. Variants take turns; figures are medians of the CPU time of all
threads, ratios are medians of the ratios of each round. Between two updates a few steps are trained.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from dst import registry
from dst.kernels.fused import fuse
from dst.run.environment import keep_memory
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.pattern.shuffled_block import shuffled_block
from dst.sparsity.weights.packing import packed
from dst.training.optimizer import sgd
from tests.bench.compute import NETWORKS

_BETWEEN = 3
"""Steps from one measured update to the next."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=["mlp_4096", "vgg_d"])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--block", type=int, default=16, help="rows of a block (default 16)")
    parser.add_argument("--unit", type=int, default=1, choices=[1, 16], help="columns that come together (default 1)")
    parser.add_argument("--every", type=int, nargs="+", default=[100], help="steps from one update to the next")
    parser.add_argument("--fused", action="store_true", help="with batch norm and dropout fused, of the dense one too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            for density in options.densities:
                print(_measured(Path(folder), name, density, options), flush=True)


def _measured(folder: Path, name: str, density: float, options: argparse.Namespace) -> str:
    """Return a line about a network at a density."""
    network = NETWORKS[name]
    x, labels = torch.randn(network.batch, *network.shape), torch.randint(10, (network.batch,))
    dense, sparse = (registry.find("model", network.model).load()(network.shape, 10, **network.options) for _ in "ab")
    if len(network.shape) == 3:
        x = x.contiguous(memory_format=torch.channels_last)
        dense, sparse = (model.to(memory_format=torch.channels_last) for model in (dense, sparse))
    if options.fused and network.has_norms:
        fuse(dense, folder)
        fuse(sparse, folder)
    optimizer = sgd(dense.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    mine = sgd(sparse.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    sparsifier = Sparsifier(
        sparse,
        mine,
        density=density,
        init="magnitude",
        pattern=partial(shuffled_block, block_size=options.block, column_unit=options.unit),
        plan=UpdatePlan(every=_BETWEEN + 1, total_steps=100_000),
        compute=packed(folder),
    )

    def dense_step() -> None:
        F.cross_entropy(dense(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def sparse_step() -> None:
        F.cross_entropy(sparse(x), labels).backward()
        sparsifier.step()
        mine.zero_grad()

    taken: dict[str, list[float]] = {"dense": [], "packed": [], "update": []}
    for _ in range(options.rounds + 1):
        for _ in range(_BETWEEN):
            for kind, step in (("dense", dense_step), ("packed", sparse_step)):
                taken[kind].append(_seconds(step))
        assert sparsifier.update_due()
        taken["update"].append(_seconds(sparse_step))
    found = {kind: seconds[len(seconds) // (options.rounds + 1) :] for kind, seconds in taken.items()}  # one unseen
    step, plain, update = (statistics.median(found[kind]) for kind in ("packed", "dense", "update"))
    gains = ", ".join(f"{plain / (step + (update - step) / every):.2f}x every {every}" for every in options.every)
    return (
        f"{name} batch {network.batch} density {density}: dense {1e3 * plain:.1f} ms, packed {1e3 * step:.1f} ms "
        f"({plain / step:.2f}x), an update {1e3 * (update - step):.1f} ms more ({(update - step) / plain:.2f} dense "
        f"steps, churn {sparsifier.topology.churn:.3f}); training {gains}"
    )


def _seconds(action) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


if __name__ == "__main__":
    main()
