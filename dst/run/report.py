"""Plain-text tables and figures for people at a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dst.sparsity.topology import LayerReport
    from dst.sparsity.weights.packing import Decision


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: the first column to the left, the others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  "
        + "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "  " + "-" * (len(lines[0]) - 2), *lines[1:]])


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def layer_table(
    layers: "Sequence[LayerReport]", outside: Mapping[str, int] | None = None, *, is_frozen: bool = False
) -> str:
    """Return one line for each layer and their total: size, active weights, density, Rs; then what is ``outside``.

    ``is_frozen``: what is outside is not trained. Reliable Rs and thresholds are further columns where there are any.
    """
    told = "frozen" if is_frozen else "dense"
    rows = [_layer_row(report.layer, report.size, report.active, report.explored) for report in layers]
    totals = [sum(getattr(report, name) for report in layers) for name in ("size", "active", "explored")]
    dense = [[f"outside the scope: {name}", f"{size:,}", told, "", ""] for name, size in (outside or {}).items()]
    header, lines = ["layer", "weights", "active", "density", "Rs"], [*rows, _layer_row("all", *totals), *dense]
    for name, cells in _further_columns(layers, totals[0]).items():
        header.append(name)
        lines = [[*line, (cells[i : i + 1] or [""])[0]] for i, line in enumerate(lines)]
    return table(header, lines)


def _further_columns(layers: "Sequence[LayerReport]", size: int) -> dict[str, list[str]]:
    """Return the columns that not all runs have: a cell for each layer and, if there is a total, one for all."""
    counted = [report.reliable for report in layers if report.reliable is not None]
    shares = [f"{count / report.size:.4f}" for count, report in zip(counted, layers, strict=False)]
    thresholds = [f"{report.threshold:.3g}" for report in layers if report.threshold is not None]
    found = {
        "reliable Rs": [*shares, f"{sum(counted) / size:.4f}"] if counted else [],
        "threshold": thresholds,
    }
    return {name: cells for name, cells in found.items() if cells}


def outside_line(outside: Mapping[str, int], *, is_frozen: bool = False) -> str:
    """Return one line about the parameters outside the scope: name -> number of weights."""
    names = ", ".join(outside)
    return f"  outside the scope, {'frozen' if is_frozen else 'dense'}: {sum(outside.values()):,} weights ({names})"


def exceptions_line(exceptions: Mapping[str, str]) -> str:
    """Return one line about the layers that the pattern cannot have: name -> what they are instead, and why."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in exceptions.items():
        by_reason.setdefault(reason, []).append(name)
    told = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in by_reason.items())
    return f"  outside the pattern: {told}"


def compute_table(step: int, decisions: "Sequence[Decision]") -> str:
    """Return one line for each layer that was timed: its density, how long it took both ways, and what was chosen."""
    rows = [[d.layer, f"{d.density:.4f}", f"{d.masked_ms:.3f}", f"{d.packed_ms:.3f}", d.choice] for d in decisions]
    totals = [sum(getattr(d, name) for d in decisions) for name in ("masked_ms", "packed_ms")]
    best = sum(min(d.masked_ms, d.packed_ms) for d in decisions)
    total = ["all", "", *(f"{ms:.3f}" for ms in totals), f"{best:.3f} ms"]
    header = ["layer", "density", "masked ms", "packed ms", "choice"]
    return f"  compute, timed after step {step} (forward and backward pass):\n{table(header, [*rows, total])}"


def repair_table(repair: Mapping[str, Any], *, whole: bool) -> str:
    """Return what was mended in the first masks: a line for each kind of repair, or (``whole``) a table of layers."""
    parts = []
    for kind, layers in repair.items():
        header, rows = [*layers[0]], [[*map(_mended, layer.values())] for layer in layers]
        if "added" in header:  # errors of matrices do not add up
            total = ["all", *(f"{sum(layer[name] for layer in layers):,}" for name in header[1:])]
            rows = [*rows, total]
            told = ", ".join(
                f"{number} {name.replace('_', ' ')}" for name, number in zip(header[1:], total[1:], strict=True)
            )
        else:
            closer = sum(layer["after"] < layer["before"] for layer in layers)
            told = f"{closer} of {len(layers)} layers are nearer to an isometry"
        names = [name.replace("_", " ") for name in header]
        parts += [f"  repair.{kind}: {told}", *([table(names, rows)] if whole else [])]
    return "\n".join(parts)


def _mended(value: str | int | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _layer_row(name: str, size: int, active: int, explored: int) -> list[str]:
    return [name, f"{size:,}", f"{active:,}", f"{active / size:.4f}", f"{explored / size:.4f}"]


RELIABLE: Final = "sparsity/rs_reliable"
"""The share of weights that were active for long enough; only where it is kept."""

_FIGURES = (
    *("test/accuracy", "sparsity/density", "sparsity/active", "model/maskable", "sparsity/rs"),
    *("flops/test", "flops/test_ratio", "flops/train", "flops/train_ratio", "time/seconds"),
)


def is_complete(summary: Mapping[str, Any] | None) -> bool:
    """Say whether a summary has every figure that the report of a run shows."""
    return summary is not None and all(isinstance(summary.get(name), int | float) for name in _FIGURES)


def run_report(run: str, name: str, folder: Path, summary: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Return the figures of one finished run; ``run``: its id, ``name``: what people call it."""
    active = f"{summary['sparsity/active']:,} of {summary['model/maskable']:,}"
    rows = {
        "test accuracy": f"{summary['test/accuracy']:.4f}",
        "density": f"{summary['sparsity/density']:.4f} ({active})",
        "Rs": f"{summary['sparsity/rs']:.4f}",
        **({"reliable Rs": f"{summary[RELIABLE]:.4f}"} if RELIABLE in summary else {}),
        "test FLOPs": f"{summary['flops/test']:.3e} ({summary['flops/test_ratio']:.3f} x dense)",
        "training FLOPs": f"{summary['flops/train']:.3e} ({summary['flops/train_ratio']:.3f} x dense)",
        "training time": f"{summary['time/seconds']:.1f} s in {status.get('attempt', 1)} attempt(s)",
        "record": str(folder),
    }
    width = max(map(len, rows))
    return "\n".join([f"run {run} done: {name}", *(f"  {key.ljust(width)}  {value}" for key, value in rows.items())])


def sweep_report(rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Return one line for each cell: (run name, state, summary)."""
    lines = [
        [
            name,
            state,
            _figure(summary, "test/accuracy", ".4f"),
            _figure(summary, "sparsity/density", ".4f"),
            _figure(summary, "sparsity/rs", ".4f"),
            _figure(summary, "flops/test_ratio", ".3f"),
            _figure(summary, "flops/train_ratio", ".3f"),
        ]
        for name, state, summary in rows
    ]
    return table(("run", "state", "test accuracy", "density", "Rs", "test FLOPs x", "train FLOPs x"), lines)


def _figure(summary: Mapping[str, Any], name: str, spec: str) -> str:
    return format(summary[name], spec) if name in summary else "-"
