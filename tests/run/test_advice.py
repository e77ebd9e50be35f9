"""What a run is told that it could have done faster."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dst.config.schema import Config, with_value
from dst.metrics.flops import Flops, Ledger, forward_flops
from dst.run.advice import packing_advice
from dst.sparsity import Sparsifier


def trained(density, widths=(64, 256, 256, 10)):
    """Return what the advice looks at of a training: a perceptron with the same density in all layers."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(*pair) for pair in pairwise(widths)])
    dense = forward_flops(model, (widths[0],))
    sparsifier = Sparsifier(model, None, density=density, distribution="uniform")
    sizes = {report.layer: report.size for report in sparsifier.layers}
    return SimpleNamespace(model=model, sparsifier=sparsifier, ledger=Ledger(Flops(dense, sizes)))


def advice(density=0.05, seconds=60.0, training=None, **changes):
    config = Config()
    config = replace(config, schedule=replace(config.schedule, batch_size=128))
    for key, value in changes.items():
        config = with_value(config, key.replace("__", "."), value)
    return packing_advice(config, training or trained(density), {"time/seconds": seconds})


def test_a_long_run_with_masks_is_told_what_packing_would_have_done():
    assert advice() == (
        "2 of 3 layers, with 97% of the dense FLOPs, are sparse enough to be multiplied by their active weights alone: "
        "sparsity.compute=packed would have been faster on this CPU"
    )


def test_what_would_gain_little_is_not_told():
    assert advice(density=0.2)  # a third of the time of 97 %: .68 are left
    assert advice(density=0.25) == ""  # a sixth: .84 are left
    assert advice(training=trained(0.05, widths=(8, 256, 8))) == ""  # nothing can be packed


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity__compute": "packed"},
        {"hardware__device": "cuda"},
        {"hardware__compile": True},
        {"sparsity__reparametrize__name": "edge_popup"},
        {"schedule__accumulate": 16},
        {"seconds": 59.9},
    ],
)
def test_nor_is_what_could_not_be_or_matters_to_nobody(changes):
    assert advice(**changes) == ""
