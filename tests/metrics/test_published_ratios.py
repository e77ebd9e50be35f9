"""FLOPs of ERK networks as published for ResNet-50 on ImageNet, without training: on the meta device."""

import pytest
import torch

from dst.metrics.flops import Flops, forward_flops
from dst.models.resnet_imagenet import resnet50
from dst.sparsity.allocation import allocate
from dst.sparsity.distribution import erk
from dst.sparsity.scope import Scope


@pytest.mark.parametrize(("density", "ratio"), [(0.2, 0.4138), (0.1, 0.2418), (0.05, 0.1217)])
def test_erk_test_flops_of_resnet50(density, ratio):
    with torch.device("meta"):
        model = resnet50((3, 224, 224), 1000)
    layers = Scope().layers(model)
    assert (len(layers), sum(layer.size for layer in layers)) == (54, 25_502_912)
    counts = allocate(erk, [layer.weight.shape for layer in layers], density)
    flops = Flops(forward_flops(model, (3, 224, 224)), {layer.name: layer.size for layer in layers})
    assert flops.dense == 8_178_368_512
    active = {layer.name: count for layer, count in zip(layers, counts, strict=True)}
    assert flops.test(active) / flops.dense == pytest.approx(ratio, abs=0.0005)
