"""What a run could have done faster, told at its end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dst.config.schema import Config
    from dst.training.loop import Training

_LEAST_S: Final = 60.0
"""Of a shorter training nobody minds the time."""

_PAYS: Final = 0.8
"""Packing is advised if it leaves less than this share of the time of all layers."""


def packing_advice(config: "Config", training: "Training", summary: Mapping[str, float]) -> str:
    """Return a line if layers should have been packed: by their FLOPs and densities; empty if it makes no odds."""
    from dst.config.method import learns
    from dst.sparsity.weights.packed_layer import LEAST_SAMPLES
    from dst.sparsity.weights.packing import limit_of, unpackable

    hardware, topology = config.hardware, training.sparsifier.topology
    is_able = hardware.device == "cpu" and not hardware.compile and not learns(config)
    if config.schedule.batch_size < LEAST_SAMPLES * config.schedule.accumulate * hardware.processes:
        return ""
    if config.sparsity.compute != "masked" or not is_able or summary["time/seconds"] < _LEAST_S:
        return ""
    stay = unpackable(training.model, topology.layers)
    densities = {report.layer: report.active / report.size for report in topology.reports}
    limits = {layer.name: limit_of(mask) for layer, mask in zip(topology.layers, topology.masks, strict=True)}
    packed = {name: d for name, d in densities.items() if name not in stay and 0 < d <= limits[name]}
    flops = training.ledger.flops
    saved = sum(flops.of_layer(name) * (1 - density / limits[name]) for name, density in packed.items())
    left = 1 - saved / flops.dense
    if left > _PAYS:
        return ""
    share = sum(map(flops.of_layer, packed)) / flops.dense
    return (
        f"{len(packed)} of {len(densities)} layers, with {share:.0%} of the dense FLOPs, are sparse enough to be "
        "multiplied by their active weights alone: sparsity.compute=packed would have been faster on this CPU"
    )
