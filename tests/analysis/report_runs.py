"""Run folders as real runs leave them, made in no time: for reports of many runs, and of hostile ones."""

import json
import math
from functools import cache
from itertools import product
from pathlib import Path

from dst.config.schema import flatten
from tests.composed import compose_cells
from tests.processes import REPOSITORY

METHODS = ("dense", "static", "set", "rigl", "snfs", "set_itop", "rigl_itop", "srigl", "granet", "gmp")
CREATED = "2026-01-01T08:00:00+00:00"
ENDED = 1767258000.0  # an hour later


@cache
def defaults() -> dict[str, object]:
    """Return a config that is as large as those of real runs."""
    ((_, config),) = compose_cells(REPOSITORY / "conf", [], multirun=False)
    return flatten(config)


def write_run(folder: Path, *, state="done", summary=None, status=None, steps=0, layers=0, **about) -> Path:
    """Write a run folder; ``about`` replaces fields of ``run.json``, ``config`` and ``identity`` their keys."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "schema": 2,
        "id": folder.name,
        "name": folder.name,
        "changed": {},
        "created": CREATED,
        "determinism": "strict",
        "command": "python run.py -m sparsity=set,rigl seed=0,1",
        "cwd": "/home/somebody/a study",
        "code": {"digest": "9e54151a9b698fad", "git": "9c27c41cb0719e3ad21da66dc08e3f528939bf71", "diff": None},
        "versions": {"python": "3.11.7", "torch": "2.14.1", "numpy": "2.4.6"},
        **{"host": "node7", "platform": "Linux", "machine": "x86_64", "device": "NVIDIA H100"},
        "dataset": {"name": "digits", "digest": "e892ceec3a88d14c"},
        **about,
    }
    (folder / "run.json").write_text(json.dumps(run))
    ended = {"state": state, "attempt": 1, "step": steps, "total_steps": steps, "error": None}
    ended |= {"heartbeat": ENDED, "host": "node7", "pid": 1} | (status or {})
    (folder / "status.json").write_text(json.dumps(ended))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def identity_of(method: str, density: float | None, seed: int) -> dict[str, object]:
    """Return an identity that differs where method, density or seed do."""
    return {"sparsity.drop.name": method, "sparsity.density": density, "seed": seed}


def write_sweep(root: Path, methods, densities, seeds, *, epochs=2, layers=2, data="digits") -> list[Path]:
    """Write a run for each method, density and seed, with histories of so many epochs and layers."""
    config = defaults() | {"data.name": data, "model.name": "mlp"}
    folders = []
    cells = dict.fromkeys((m, None if m == "dense" else d, s) for m, d, s in product(methods, densities, seeds))
    for nth, (method, density, seed) in enumerate(cells):
        own = identity_of(method, density, seed) | {"data.name": data}
        folder = root / f"{nth:012x}"
        ratio = density or 1.0
        accuracy = 0.9 + 0.05 * ratio + 0.001 * seed + 0.002 * (nth % 7)
        write_run(
            folder,
            name=f"{data} mlp {method} density={density} seed={seed}",
            identity=own,
            config=config | own | {"sparsity.label": method},
            summary={
                "test/accuracy": accuracy, "val/accuracy": accuracy, "test/loss": 0.1, "sparsity/density": ratio,
                "sparsity/rs": min(1.0, 3 * ratio), "sparsity/active": int(1e6 * ratio), "model/maskable": 10**6,
                "flops/test": 1e6 * ratio, "flops/train": 1e12 * ratio, "flops/test_ratio": ratio,
                "flops/train_ratio": 2 * ratio, "time/seconds": 60.0,
            },
            steps=100 * epochs,
        )  # fmt: skip
        _write_histories(folder, epochs, layers, ratio, accuracy)
        folders.append(folder)
    return folders


def _write_histories(folder: Path, epochs: int, layers: int, density: float, accuracy: float) -> None:
    metrics, rows = [], []
    for epoch in range(epochs + 1):
        gone = epoch / epochs
        at = {"step": 100 * epoch, "epoch": float(epoch), "attempt": 1}
        known = {
            "train/loss": 2 * math.exp(-3 * gone) + 0.01234567,
            "train/accuracy": accuracy * (1 - math.exp(-5 * gone)),
        }
        reach = {"sparsity/density": density, "sparsity/rs": min(1.0, density * (1 + 2 * gone)), "lr": 0.1 * (1 - gone)}
        metrics += [at | known | reach, at | {"val/loss": 0.3, "val/accuracy": accuracy * (1 - math.exp(-5 * gone))}]
        rows += [
            {
                **{"step": 100 * epoch, "attempt": 1, "layer": f"layer{layer}.conv", "size": 10**5},
                **{"active": int(10**5 * density), "explored": int(10**5 * min(1.0, density * (1 + gone)))},
                **{"dropped": 1000 - epoch, "grown": 1000 - epoch},
            }
            for layer in range(layers)
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (folder / "layers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
