"""Packed layers whose rows are alike: beside masks, to other masks and back, and as plain tensors in a file."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn

from dst.kernels.blocks import Blocks
from dst.kernels.unstructured import Unstructured
from dst.sparsity.pattern.shuffled_block import shuffled_block
from dst.sparsity.weights.exported import dense_of
from tests.sparsity.test_packed import adam, assert_alike, pair, sgd, take

DSB = partial(shuffled_block, block_size=8)
OWN = {"2": 8, "7": 16}  # rows of a group; layer 4 has 20, which 8 does not divide


def in_blocks(topology, density=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for layer, mask in zip(topology.layers, topology.masks, strict=True):
        rows = OWN.get(layer.name)
        if rows is not None:
            columns = torch.rand(len(mask) // rows, *mask.shape[1:], generator=generator) < density
            masks.append(columns.repeat_interleave(rows, 0)[torch.randperm(len(mask), generator=generator)])
        else:
            masks.append(mask)
    return masks


@torch.no_grad()
def begin(sparsifier, masks):
    """Have the weights of these masks, none of them zero, as a set of masks leaves those that are new."""
    sparsifier.set_masks(masks)
    generator = torch.Generator().manual_seed(1)
    with sparsifier.unpacked():
        for layer, mask in zip(sparsifier.topology.layers, masks, strict=True):
            layer.weight.copy_(torch.randn(mask.shape, generator=generator) * mask * 0.2)


def products_of(model):
    """The kind of the products of each packed layer, as they are made."""
    kinds = {}
    for name, module in model.named_modules():
        if "_packed" in vars(module):
            kinds[name] = {type(made) for made in module._packed._products.values()}
    return kinds


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_training_is_that_of_masks(packing, optimizer):
    held = pair(packing, optimizer=optimizer, drop=None, grow=None, plan=None)
    for model, sparsifier in held:
        begin(sparsifier, in_blocks(sparsifier.topology))
        take(model, sparsifier, range(8))
    assert_alike(held, atol=2e-6 if optimizer is sgd else 5e-4)
    model, sparsifier = held[1]
    assert products_of(model) == {"2": {Blocks}, "4": {Unstructured}, "7": {Blocks}}
    with sparsifier.unpacked():
        for (name, theirs), ours in zip(held[0][0].named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0, msg=name)
    assert products_of(model).keys() == {"2", "4", "7"}


def test_masks_lose_their_blocks_and_get_others(packing):
    """Weights that stay keep their values and momentum, though these lie in another order."""
    held = pair(packing, drop=None, grow=None, plan=None)
    kinds = []
    for model, sparsifier in held:
        others = list(sparsifier.topology.masks)
        begin(sparsifier, in_blocks(sparsifier.topology, seed=2))
        for masks in (in_blocks(sparsifier.topology), others, in_blocks(sparsifier.topology, seed=1)):
            sparsifier.set_masks(masks)
            take(model, sparsifier, range(4))
            kinds.append(products_of(model))
    assert_alike(held)
    assert [found["2"] for found in kinds[3:]] == [{Blocks}, {Unstructured}, {Blocks}]


def test_blocks_are_packed_at_densities_at_which_others_are_not(packing):
    _, (_, sparsifier) = pair(packing, drop=None, grow=None, plan=None)
    sparsifier.set_masks(in_blocks(sparsifier.topology, density=0.42))
    densities = {report.layer: report.active / report.size for report in sparsifier.layers}
    assert all(0.3 < densities[name] <= 0.5 for name in OWN)
    assert sparsifier.weights.packed == ["2", "4", "7"]
    torch.manual_seed(0)
    sparsifier.set_masks([torch.rand(mask.shape) < 0.42 for mask in sparsifier.topology.masks])
    assert sparsifier.weights.packed == []


def test_blocks_are_exported_as_plain_tensors(packing):
    for model, sparsifier in pair(packing, drop=None, grow=None, plan=None):
        begin(sparsifier, in_blocks(sparsifier.topology))
        take(model, sparsifier, range(2))
        file = io.BytesIO()
        torch.save(sparsifier.weights.exported(), file)
        file.seek(0)
        found = torch.load(file, weights_only=True)
        assert found.keys() == OWN.keys()
        dense = model.state_dict()
        for name, blocks in found.items():
            assert torch.equal(dense_of(blocks), dense[f"{name}.weight"])
            assert len(blocks["values"]) == (dense[f"{name}.weight"] != 0).sum()
            assert set((blocks["sizes"] % OWN[name]).tolist()) == {0}
    assert isinstance(model[2], nn.Conv2d)


def test_dsb_goes_on_with_masks_and_back(packing):
    """Through updates that regroup rows: the state of either is taken over by the other, which ends as it."""
    options = {"init": "magnitude", "distribution": "uniform", "density": 0.2, "pattern": DSB, "every": 3}
    (masked, theirs), (packed, ours) = pair(packing, **options)
    for model, sparsifier in ((masked, theirs), (packed, ours)):
        take(model, sparsifier, range(4))
    for source, target in (((packed, ours), (masked, theirs)), ((masked, theirs), (packed, ours))):
        (of, sparsifier), (model, other) = source, target
        model.load_state_dict(of.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(sparsifier.optimizer.state_dict()))  # or both would share it
        other.load_state_dict(sparsifier.state_dict())
        assert_alike(((masked, theirs), (packed, ours)), atol=0)
        for trained, its in ((masked, theirs), (packed, ours)):
            take(trained, its, range(4, 11))
        assert_alike(((masked, theirs), (packed, ours)))
    assert ours.updates == 6
    assert products_of(packed)["2"] == products_of(packed)["7"] == {Blocks}
    for own, its in zip(ours.topology.patterns, theirs.topology.patterns, strict=True):
        assert (own.rows is None) == (its.rows is None)
        assert own.rows is None or torch.equal(own.rows, its.rows)
