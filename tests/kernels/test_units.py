"""Units of adjacent channels and groups of rows, found in masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst.kernels.units import BLOCKS, UNIT, units_of
from tests.bench import blocks_gpu


@st.composite
def masks(draw):
    """Return a mask, its group of each row, and rows of a group."""
    block, groups = draw(st.sampled_from(BLOCKS)), draw(st.integers(1, 3))
    chunks, kernel = draw(st.integers(1, 3)), draw(st.sampled_from([(), (1, 1), (3, 2)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    taps = torch.Size(kernel).numel()
    has_unit = torch.rand(groups, chunks, 1, taps, generator=generator) < draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    group = torch.arange(groups).repeat_interleave(block)[torch.randperm(groups * block, generator=generator)]
    mask = has_unit[group].expand(-1, -1, UNIT, -1).reshape(groups * block, chunks * UNIT, *kernel)
    return mask, has_unit[:, :, 0], group, block


@given(masks())
def test_units_are_those_of_the_mask(drawn):
    mask, has_unit, _, block = drawn
    units = units_of(mask, block)
    assert sorted(units.rows.tolist()) == [*range(len(mask))]
    grouped = units.rows.view(-1, block)
    assert torch.equal(grouped, grouped.sort(1).values)
    for rows in grouped:
        assert (mask[rows] == mask[rows[:1]]).all()
    found = torch.zeros(mask.numel(), dtype=torch.int64)
    found.index_add_(0, units.places, torch.ones_like(units.places))
    assert torch.equal(found.view(mask.shape), mask.long())  # each weight once, and no other
    assert units.starts[-1] == len(units.group) == int(has_unit.sum())
    keys = torch.stack([units.group, units.tap, units.chunk], 1).tolist()
    assert keys == sorted(keys)


@given(masks())
def test_places_depend_on_the_mask_alone(drawn):
    mask, _, _, block = drawn
    units = units_of(mask)
    assert units.block >= block
    assert torch.equal(units_of(mask.clone()).places, units.places)
    values = torch.randn(mask.shape) * mask
    kept = values.flatten()[units.places].view(-1, UNIT, units.block)
    by_tap = values.view(*mask.shape[:2], -1)
    for i, own in enumerate(kept):
        rows = by_tap[units.rows.view(-1, units.block)[units.group[i]]]
        assert torch.equal(own, rows[:, units.chunk[i] * UNIT :, units.tap[i]][:, :UNIT].t())


def test_groups_are_in_the_order_of_their_first_rows():
    mask = torch.zeros(96, 32, dtype=torch.bool)
    mask[1::3, :16] = True
    mask[::3, 16:] = True
    mask[2::3] = True
    units = units_of(mask)
    assert units.block == 32
    assert units.rows.view(3, -1)[:, :3].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert units.starts.tolist() == [0, 1, 2, 4]
    assert (units.chunk.tolist(), units.tap.tolist()) == ([1, 0, 0, 1], [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(32, 24), "24 input channels are not divisible by 16"),
        (torch.ones(32, 32).index_fill(1, torch.tensor([3]), 0), "not whole units of 16 adjacent input channels"),
        (torch.eye(16).repeat(2, 1)[:, :, None, None].expand(-1, -1, 3, 3), "not whole units"),
        (torch.ones(48, 16), "48 rows are not groups of 32 with equal units"),
        (torch.cat([torch.ones(48, 32), torch.ones(48, 32).tril(-1000)]), "96 rows are not groups of 32"),
    ],
)
def test_other_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        units_of(mask.bool())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "PyTorch finds no CUDA GPU"),
        (("--densities", "2"), "2 is not in"),
        (("--blocks", "16"), "invalid choice: 16"),
        (("--layers", "conv_9"), "invalid choice: 'conv_9'"),
        (("--rounds", "0"), "0 is not 1 or more"),
    ],
)
def test_the_benchmark_checks_what_it_is_given(given, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        blocks_gpu.main(given)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("layer", blocks_gpu.LAYERS)
def test_the_benchmark_draws_a_tenth_of_the_units_of_each_group(layer, block):
    shape, _ = blocks_gpu.LAYERS[layer]
    if shape.outs % block == 0:
        units = units_of(blocks_gpu.drawn(shape, block, 0.1), block)
        columns = shape.channels // UNIT * shape.taps
        assert units.starts.diff().unique().tolist() == [max(1, round(0.1 * columns))]
