"""A vision transformer on real digits, whose attention is sparse: what moves, what is counted, what is reported."""

import torch

from dst.run.build import build
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag
from tests.sparsity import test_catalogue as catalogue

OPTIONS = (*catalogue.ADAMW, "sparsity.density=0.2")
TOKENS = {"conv_proj": 4, "heads.head": 1}
"""How often a sample of 8x8 meets a layer; all others see four patches and the class token."""


class Witness(NoObserver):
    """Compares what is reported with the tensors, after every update and once more when what has grown has moved."""

    def __init__(self, training):
        self.sparsifier, self.reports, self.reported_at = training.sparsifier, [], 0
        self.updates = self.compared = 0

    def on_layers(self, step, layers):
        self.reports, self.reported_at, self.updates = layers, step, self.updates + 1
        held = self.sparsifier.topology.layers
        assert [report.active for report in layers] == [int(mask.sum()) for mask in self.sparsifier.topology.masks]
        assert all(int(layer.weight.count_nonzero()) <= r.active for layer, r in zip(held, layers, strict=True))
        self.sparsifier.verify()

    def on_step(self, step):
        if self.updates > self.compared and step == self.reported_at + 1:
            found = {layer.name: int(layer.weight.count_nonzero()) for layer in self.sparsifier.topology.layers}
            assert found == {report.layer: report.active for report in self.reports}
            self.compared += 1


def test_queries_keys_and_values_move_and_every_tensor_is_as_dense_as_reported():
    config = catalogue.composed("rigl_itop", "vit_tiny", OPTIONS)
    training = build(config).training
    topology = training.sparsifier.topology
    first = {layer.name: mask.clone() for layer, mask in zip(topology.layers, topology.masks, strict=True)}
    witness = Witness(training)
    training.run(witness, StopFlag())
    assert witness.updates == witness.compared == training.sparsifier.updates == 2
    assert topology.active == sum(int(mask.sum()) for mask in first.values()) == round(0.2 * topology.size)
    last = {layer.name: mask for layer, mask in zip(topology.layers, topology.masks, strict=True)}
    fused = [name for name in last if name.endswith("in_proj")]
    assert len(fused) == 6
    for name in fused:
        left, entered = (first[name] & ~last[name]).chunk(3), (last[name] & ~first[name]).chunk(3)
        assert all(torch.any(part) for part in (*left, *entered)), name


def test_flops_of_sparse_attention():
    config = catalogue.composed("static", "vit_tiny", OPTIONS)
    training = build(config).training
    layers = training.sparsifier.layers
    by_layer = sum(2 * TOKENS.get(report.layer, 5) * report.active for report in layers)
    flops = training.ledger.flops.test({report.layer: report.active for report in layers})
    assert flops == by_layer + 6 * 4 * 192 * 5**2  # scores and sums of values in six blocks
