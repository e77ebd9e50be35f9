"""Shuffled blocks of all layers at once, as a GPU moves them, are those of each layer by itself."""

import copy
import math

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dst.sparsity.pattern import Asked, Budget, allowed, updated
from dst.sparsity.pattern.shuffled_block import shuffled_block
from tests.sparsity.test_segments import Watch, as_on_a_device
from tests.sparsity.test_shuffled_block import KINDS, scores

LAYERS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([(5,), (7, 2, 2), (32,), (32, 3, 1), (48, 2)]), st.floats(0.02, 0.95)),
    min_size=1,
    max_size=5,
)

FULL_OF_WORTH = [(4, (32, 3, 1), 0.9), (4, (32, 3, 1), 0.1), (5, (5,), 0.9)]


def network(layers, block, width, least, every, seed):
    """Return patterns and masks of layers; those that do not divide are without blocks."""
    patterns, masks = [], []
    for i, (groups, columns, density) in enumerate(layers):
        shape = torch.Size((block * groups, *columns))
        pattern = shuffled_block(block_size=block, column_unit=width, min_units=least, regroup_every_updates=every)
        floor = groups * least * block * width
        count = pattern.admissible(shape, min(max(floor, round(density * math.prod(shape))), math.prod(shape)))
        patterns.append(pattern)
        masks.append(pattern.initial(scores(shape, seed + i), count))
    return patterns, masks


def asked(patterns, masks, fraction, regrow, seed, kinds, power, uneven):
    layers = []
    for i, (pattern, mask) in enumerate(zip(patterns, masks, strict=True)):
        count = int(mask.sum())
        drop = math.ceil(fraction * count)
        drop = drop if regrow else min(drop, mask.numel() - count)
        losing, gaining = (scores(mask.shape, seed + 9 * i + j, kind) for j, kind in enumerate(kinds))
        # Rows of uneven worth change groups, and then a group may have all that is worth much.
        losing *= torch.exp(uneven * scores((len(mask), *[1] * (mask.dim() - 1)), seed + i))
        gaining *= torch.exp(uneven * scores((1, *mask.shape[1:]), seed + i + 5))
        budget = Budget(drop=drop, grow=drop, count=count, regrow=regrow, active=count)
        layers.append(Asked(pattern, losing * 2.0**power * mask, gaining * 2.0**-power, mask, budget))
    return layers


@settings(max_examples=60)
@given(
    LAYERS,
    st.sampled_from([2, 3, 8]),
    st.sampled_from([1, 16]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.sampled_from([0, 0.01, 0.3, 1]),
    st.booleans(),
    st.integers(0, 99),
    KINDS,
    KINDS,
    st.sampled_from([0, 40, -90]),
    st.sampled_from([0, 2, 5]),
    st.sampled_from([16, 512]),
)
@example([(3, (5,), 0.7)], 8, 1, 1, 1, 0.3, False, 3, "distinct", "distinct", 0, 2, 16)  # groups without room
@example([(5, (5,), 0.5)], 2, 1, 2, 1, 0.01, True, 106, "distinct", "distinct", 0, 2, 16)  # lacking more than is grown
@example(FULL_OF_WORTH, 8, 16, 1, 1, 0.3, True, 16, "distinct", "distinct", 0, 5, 16)  # and less than all
def test_layers_move_together_as_they_do_by_themselves(
    layers, block, width, least, every, fraction, regrow, seed, drops, grows, power, uneven, columns
):
    patterns, masks = network(layers, block, width, least, every, seed)
    others = copy.deepcopy(patterns)
    for round_ in range(2):
        given_ = masks, fraction, regrow, seed + round_, (drops, grows), power, uneven
        expected = updated(asked(patterns, *given_))
        with as_on_a_device(columns=columns):
            found = updated(asked(others, *given_))
            assert allowed(others, [mask for _, mask in found]) == [True] * len(masks)
        for pair, (kept, mask) in zip(expected, found, strict=True):
            assert torch.equal(pair.kept, kept)
            assert torch.equal(pair.mask, mask)
            assert mask.untyped_storage().nbytes() == mask.numel()
        for mine, own in zip(others, patterns, strict=True):
            assert mine.updates == own.updates
            assert (mine.rows is None and own.rows is None) or torch.equal(mine.rows, own.rows)
        masks = [mask for _, mask in expected]


def made(layers, every=1):
    """Return layers of a network before an update, half of them with columns of another number."""
    given_ = [(4, (16, 3, 3) if i % 2 else (8, 3, 3), 0.2) for i in range(layers)]
    return asked(*network(given_, 8, 1, 1, every, 0), 0.3, True, 0, ("distinct", "distinct"), 0, 2)


def test_masks_that_left_the_last_groups_are_grouped_anew():
    """Restored from elsewhere, say; and what is in no groups at all is refused, as a layer by itself is."""
    layers = made(6)
    for own in layers[2:4]:
        own.mask.copy_(own.mask.flip(0))
        own.drop_scores.mul_(own.mask)
    others = [own._replace(pattern=copy.deepcopy(own.pattern)) for own in layers]
    expected = updated(layers)
    with as_on_a_device():
        assert allowed([own.pattern for own in others], [own.mask for own in others]) == [True] * 6
        found = updated(others)
        for mine, one in zip(found, expected, strict=True):
            assert torch.equal(mine.kept, one.kept)
            assert torch.equal(mine.mask, one.mask)
        for mine, own in zip(others, layers, strict=True):
            assert torch.equal(mine.pattern.rows, own.pattern.rows)
            assert mine.pattern.updates == own.pattern.updates == 1
        masks = [mask for _, mask in found]
        masks[3][0, 0] ^= True
        assert allowed([own.pattern for own in others], masks) == [True, True, True, False, True, True]


def test_more_layers_are_a_dozen_kernels_each_and_no_more_reads():
    numbers = []
    with as_on_a_device():
        for layers in (6, 20):
            updated(made(layers))  # tables are made once
            given_ = made(layers)
            with Watch() as watch:
                found = updated(given_)
                assert all(allowed([own.pattern for own in given_], [mask for _, mask in found]))
            numbers.append((sum(watch.kernels.values()), watch.waits))
    (few, reads), (many, same) = numbers
    assert many - few <= 16 * 14
    assert few <= 1_250  # floors of groups included
    assert same == reads == ["_local_scalar_dense"] * 2 + ["tolist"] * 2, reads
