"""Shuffled blocks: structure, counts and floors whatever the scores; the published extraction, step by step."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from torch import nn

from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.pattern import Budget
from dst.sparsity.pattern.grouping import alike, placed, regrouped
from dst.sparsity.pattern.shuffled_block import shuffled_block
from dst.sparsity.pattern.unstructured import Unstructured


def scores(shape, seed, kind="distinct"):
    """Distinct numbers, many ties, or all zero."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).abs()
    return {"distinct": found, "ties": (3 * found).round(), "zero": torch.zeros(shape)}[kind]


KINDS = st.sampled_from(["distinct", "ties", "zero"])


def tables(mask, rows, width):
    """Return the columns of each group, by hand; fails unless a group's rows have the same ones, in whole units."""
    flat, found = mask.flatten(1), []
    taps = math.prod(mask.shape[2:])
    for group in rows.tolist():
        columns = {tuple(flat[row].nonzero()[:, 0].tolist()) for row in group}
        assert len(columns) == 1
        (own,) = columns
        units = {(column // taps // width, column % taps) for column in own}
        assert len(own) == len(units) * width
        found.append(own)
    return found


@given(
    st.sampled_from([2, 3, 8]),
    st.integers(1, 5),
    st.sampled_from([(5,), (7, 2, 2), (16,), (32, 3, 1)]),
    st.sampled_from([1, 16]),
    st.integers(1, 2),
    st.floats(0.05, 0.95),
    st.floats(0.01, 1),
    st.integers(0, 99),
    KINDS,
    KINDS,
    st.booleans(),
    st.integers(0, 2),
)
def test_blocks(block, groups, columns, width, least, density, fraction, seed, drops, grows, may_return, every):
    shape = torch.Size((block * groups, *columns))
    size, unit = math.prod(shape), block * width
    pattern = shuffled_block(block_size=block, column_unit=width, min_units=least, regroup_every_updates=every)
    if columns[0] % width:
        assert pattern.exception(shape) == f"unstructured: {columns[0]} input channels are no multiple of 16"
        assert pattern.admissible(shape, 7) == 7
        return
    wanted = round(density * size)
    if min(round(wanted / unit), size // unit) < groups * least:
        with pytest.raises(ValueError, match="too few for"):
            pattern.admissible(shape, wanted)
        return
    count = pattern.admissible(shape, wanted)
    assert count % unit == 0
    assert abs(count - wanted) <= unit / 2
    mask = pattern.initial(scores(shape, seed, drops), count)
    for round_ in range(3):
        assert mask.sum() == count
        assert sorted(pattern.rows.flatten().tolist()) == list(range(shape[0]))  # every row in exactly one group
        units = [len(own) // width for own in tables(mask, pattern.rows, width)]
        assert min(units) >= least
        assert sum(units) * unit == count
        assert pattern.allows(mask)
        again = shuffled_block(block_size=block, column_unit=width, min_units=least, regroup_every_updates=every)
        assert again.allows(mask)  # found anew from the mask
        again.load_state_dict(pattern.state_dict())
        drop = math.ceil(fraction * count)
        budget = Budget(drop=drop, grow=drop, count=count, regrow=may_return)
        given_ = scores(shape, seed + round_, drops) * mask, scores(shape, 7 + round_, grows), mask, budget
        kept, after = pattern.update(*given_)
        assert all(torch.equal(*pair) for pair in zip(again.update(*given_), (kept, after), strict=True))
        assert torch.equal(again.rows, pattern.rows)
        assert not (kept & ~mask).any()
        assert not (kept & ~after).any()
        mask = after


def test_by_hand():
    """Two groups of two rows. The weakest column of the layer leaves, the steepest free one enters, in its group."""
    pattern = shuffled_block(block_size=2, regroup_every_updates=0)
    pattern.load_state_dict({"rows": torch.tensor([[0, 2], [1, 3]]), "updates": 3})
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert pattern.allows(mask)
    weights = torch.tensor([[5.0, 4, 0, 0], [0, 0, 3, 0.1], [5, 4, 0, 0], [0, 0, 3, 4.1]])
    gradients = torch.tensor([[0.0, 0, 3, 0], [4, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]])
    kept, after = pattern.update(weights, gradients, mask, Budget(drop=2, grow=2, count=8))
    # norms of columns: (50, 32), (18, 16.82); of free gradients: (18, 0), (16, 0)
    assert kept.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert after.int().tolist() == [[1, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0]]


def test_a_group_keeps_its_floor_whatever_its_columns_are_worth():
    pattern = shuffled_block(block_size=2, regroup_every_updates=0)
    mask = pattern.initial(torch.tensor([[9.0, 9, 9, 1], [9, 9, 9, 1], [1, 2, 1, 1], [1, 2, 1, 1]]), 8)
    assert mask.sum(1).tolist() == [3, 3, 1, 1]
    worth = torch.tensor([[9.0, 9, 8, 0], [9, 9, 8, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    wanted = torch.tensor([[0.0, 0, 7, 8], [0, 0, 7, 8], [1, 0, 2, 0], [1, 0, 2, 0]])
    kept, after = pattern.update(worth, wanted, mask, Budget(drop=4, grow=4, count=8))
    assert kept.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert after.int().tolist() == [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0]]


def test_a_layer_at_its_floor_moves_too():
    """Every group has one column: the two weakest leave, and both groups get another one."""
    pattern = shuffled_block(block_size=2, regroup_every_updates=0)
    mask = pattern.initial(torch.eye(4).repeat_interleave(2, 0), 8)
    assert mask.int().tolist() == torch.eye(4).int().repeat_interleave(2, 0).tolist()
    worth, wanted = torch.tensor([4.0, 3, 2, 1]).repeat_interleave(2)[:, None] * mask, scores((8, 4), 3) + 1
    wanted[4:, 0], wanted[4:, 1] = 9, 8
    _, after = pattern.update(worth, wanted, mask, Budget(drop=4, grow=4, count=8))
    assert after.int().argmax(1).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert after.sum(1).tolist() == [1] * 8


def test_a_unit_of_sixteen_channels_is_dropped_and_grown_as_one():
    pattern = shuffled_block(block_size=2, column_unit=16, regroup_every_updates=0)
    mask = pattern.initial(scores((4, 32, 3), 1), 4 * 32 * 3 // 2)
    before = mask.view(4, 2, 16, 3)
    _, after = pattern.update(scores((4, 32, 3), 2) * mask, scores((4, 32, 3), 3), mask, Budget(64, 64, 192))
    for found in (before, after.view(4, 2, 16, 3)):
        assert ((found.sum(2) == 16) | (found.sum(2) == 0)).all()
    assert not torch.equal(after, mask)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("power", [-90, -60, 80, 110])
def test_scores_may_be_as_small_or_large_as_numbers_are(power, published):
    """Those of Taylor's criterion and of SynFlow are: their squares would all be zero, or infinite."""
    chosen = []
    for factor in (1.0, 2.0**power):
        if published:
            pattern = shuffled_block(block_size=8, published=True, min_units=0)
        else:
            pattern = shuffled_block(block_size=8)
        masks = [pattern.initial(factor * scores((32, 16, 3), 0), 32 * 16)]
        given_ = factor * scores((32, 16, 3), 1) * masks[0], factor * scores((32, 16, 3), 2)
        masks += pattern.update(*given_, masks[0], Budget(drop=200, grow=200, count=512))
        masks += [pattern.prune(factor * scores((32, 16, 3), 3), masks[0] | masks[2], masks[2]), pattern.rows]
        chosen.append(masks)
    assert not torch.equal(chosen[0][0], chosen[0][2])
    assert all(map(torch.equal, *chosen))


# -- grouping ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 999), st.booleans())
def test_rows_and_groups_are_matched_stably(groups, size, seed, has_ties):
    affinity = torch.randn(groups * size, groups, generator=torch.Generator().manual_seed(seed))
    affinity = affinity.round() if has_ties else affinity
    choice = placed(affinity, size)
    assert torch.bincount(choice, minlength=groups).tolist() == [size] * groups
    for row, mine in enumerate(choice.tolist()):
        for group in range(groups):
            members = affinity[choice == group, group]
            would_rather = affinity[row, group] > affinity[row, mine]
            assert not (would_rather and (affinity[row, group] > members).any())


def test_rows_that_changed_places_find_their_groups_again():
    kinds = scores((4, 40), 0) > 0.9
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    values = scores((16, 40), 1) * kinds.repeat_interleave(4, 0)[order]
    planted = (order // 4).argsort(stable=True).view(4, 4)
    disturbed = planted.clone()
    disturbed[0, 0], disturbed[1, 0], disturbed[2, 3] = planted[1, 0], planted[2, 3], planted[0, 0]
    assert regrouped(values, disturbed).tolist() == planted[planted[:, 0].argsort()].tolist()
    assert torch.equal(regrouped(torch.zeros(16, 40), disturbed).sort(0).values.sum(), torch.tensor(120))


def test_groups_are_found_in_a_mask():
    mask = (scores((3, 20), 5) > 0.5)[[0, 1, 2, 1, 0, 2]]
    assert alike(mask, 2).tolist() == [[0, 4], [1, 3], [2, 5]]
    with pytest.raises(ValueError, match="not in blocks"):
        alike(mask, 3)


# -- training ----------------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def trained(pattern, steps=20, **options):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    given = {"plan": UpdatePlan(every=4, total_steps=steps + 1), "drop_fraction": 0.3, **options}
    sparsifier = Sparsifier(
        model, optimizer, density=0.2, distribution="uniform", init="magnitude", pattern=pattern, **given
    )
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)
        nn.functional.cross_entropy(model(x), y).backward()
        before = [mask.clone() for mask in sparsifier.topology.masks]
        state = [optimizer.state[layer.weight] for layer in sparsifier.topology.layers]
        if sparsifier.step():
            for i, (old, new) in enumerate(zip(before, sparsifier.topology.masks, strict=True)):
                born = new & ~old
                weight = sparsifier.topology.layers[i].weight
                assert (weight[born] == 0).all()
                assert (state[i]["momentum_buffer"][born] == 0).all()
                assert (weight[~new] == 0).all()
            found.append(sparsifier.topology.churn)
        optimizer.zero_grad()
    return sparsifier, found


@pytest.mark.parametrize("every", [0, 1, 2])
def test_dsb_moves_as_much_as_it_says(every):
    pattern = partial(shuffled_block, block_size=16, regroup_every_updates=every)
    sparsifier, churn = trained(pattern)
    assert len(churn) == 5
    assert all(moved >= 0.15 for moved in churn)
    assert sparsifier.exceptions == {"6": "unstructured: 10 outputs are no multiple of 16"}
    rows = [report.row["churn"] for report in sparsifier.layers]
    assert rows == [report.grown / report.active for report in sparsifier.layers]


def test_ssb_does_not_move():
    sparsifier, churn = trained(partial(shuffled_block, block_size=16), plan=None, drop_fraction=None)
    assert churn == []
    assert sparsifier.topology.churn is None
    assert all(pattern.updates == 0 for pattern in sparsifier.topology.patterns)


def test_the_state_of_another_method_is_refused():
    """Blocks of another size, no blocks at all, and those of the published extraction."""
    kinds = {
        "16": partial(shuffled_block, block_size=16),
        "8": partial(shuffled_block, block_size=8),
        "published": partial(shuffled_block, block_size=16, published=True, min_units=0),
        "none": "unstructured",
    }
    made = {name: trained(pattern, steps=5)[0] for name, pattern in kinds.items()}
    states = {name: copy.deepcopy(sparsifier.state_dict()) for name, sparsifier in made.items()}
    told = {
        ("16", "8"): "stored groups have 8 rows, not 16: they are of another method",
        ("16", "none"): "stored masks break the pattern in layers 0, 2: the state is of another method",
        ("published", "16"): "the stored blocks are no squares of 16: they are of another method",
        ("published", "none"): "stored masks break the pattern in layers 2: the state is of another method",
        ("8", "16"): "stored groups have 16 rows, not 8: they are of another method",
    }
    for (own, other), message in told.items():
        with pytest.raises(ValueError, match=f"^{message}$"):
            made[own].load_state_dict(states[other])
    for name in ("16", "8", "published"):
        again = trained(kinds[name], steps=5)[0]
        again.load_state_dict(states[name])
        assert all(map(torch.equal, again.topology.masks, states[name]["masks"].values()))


def test_the_published_extraction_moves_little():
    _, published = trained(partial(shuffled_block, block_size=16, published=True, min_units=0))
    _, ours = trained(partial(shuffled_block, block_size=16))
    assert max(published) < 0.5 * min(ours)


def test_without_blocks_it_is_unstructured():
    assert isinstance(shuffled_block(block_size=0), Unstructured)


# -- the published extraction ------------------------------------------------------------------------------------------


def extracted(magnitudes, mask, block, count):
    """Return the mask of sections 2.4 of the observed code, block by block."""
    rows, columns = mask.shape
    clusters = max(rows // block, 1)
    unit = nn.functional.normalize(mask.double(), dim=1)
    distance = (1 - unit @ unit.t()).fill_diagonal_(0).clamp(min=0)
    label = AgglomerativeClustering(clusters, metric="precomputed", linkage="complete").fit_predict(distance.numpy())
    members = [[row for row in range(rows) if label[row] == cluster] for cluster in range(clusters)]
    members.sort(key=lambda cluster: (-len(cluster), cluster[0]))
    order = [row for cluster in members for row in cluster]
    chunks = []
    for start in range(0, rows, block):
        group = order[start : start + block]
        norm = magnitudes[group].square().sum(0).sqrt()
        by_norm = sorted(range(columns), key=lambda column: -norm[column])
        for first in range(0, columns, block):
            chunk = by_norm[first : first + block]
            chunks.append((float(norm[chunk].sum()), group, chunk))
    best = sorted(chunks, key=lambda chunk: -chunk[0])[: count // block**2]
    found = torch.zeros_like(mask)
    for _, group, chunk in best:
        for row in group:
            found[row, chunk] = True
    return found, best


@pytest.mark.parametrize("seed", range(4))
def test_published_update_step_by_step(seed):
    block, shape = 4, (16, 8, 3, 1)
    pattern = shuffled_block(block_size=block, published=True, min_units=0)
    count = pattern.admissible(torch.Size(shape), 100)
    assert count == 112  # seven blocks, ceil(100 / 16)
    first = scores(shape, seed)
    mask = pattern.initial(first, count)
    ranked = first.flatten().argsort(descending=True)[:count]
    top = torch.zeros(16 * 24, dtype=torch.bool).index_fill_(0, ranked, True).view(16, 24)
    flat, best = extracted(first.view(16, 24) * top, top, block, count)
    assert torch.equal(mask.view(16, 24), flat)
    assert mask.sum() == count
    weights, gradients = scores(shape, seed + 10) * mask, scores(shape, seed + 20)
    kept, after = pattern.update(weights, gradients, mask, Budget(drop=50, grow=50, count=count))
    # By hand: candidates, those that are not isolated in their block, as many grown, and the extraction of all.
    lowest = weights.flatten().masked_fill(~mask.flatten(), math.inf).argsort()[:50]
    leaving = torch.zeros(16 * 24, dtype=torch.bool).index_fill_(0, lowest, True).view(16, 24)
    really = torch.zeros_like(leaving)
    for _, group, chunk in best:
        for row in group:
            for column in chunk:
                lines = leaving[row, chunk].sum(), leaving[group, column].sum()
                really[row, column] = leaving[row, column] & (max(lines) >= block / 2)
    assert (really.sum() < 50) == (seed > 0)  # some are isolated
    stays = flat & ~really
    grown = gradients.view(16, 24).masked_fill(stays, -1).flatten().argsort(descending=True)[: int(really.sum())]
    enters = torch.zeros(16 * 24, dtype=torch.bool).index_fill_(0, grown, True).view(16, 24)
    magnitudes = weights.view(16, 24) * stays
    magnitudes[enters] = magnitudes[magnitudes > 0].mean()
    assert torch.equal(kept.view(16, 24), stays)
    assert torch.equal(after.view(16, 24), extracted(magnitudes, stays | enters, block, count)[0])
    assert pattern.allows(after)
    assert not pattern.allows(mask) or torch.equal(mask, after)


def test_what_the_published_code_leaves_out():
    pattern = shuffled_block(block_size=16, published=True, min_units=0)
    told = {
        (32, 64): "unstructured: linear layers are never in blocks",
        (16, 3, 3, 3): "static: 27 columns are no multiple of 16",
        (20, 32, 1, 1): "static: 20 outputs are no multiple of 16",
        (32, 4, 2, 2): "static: 4 input channels are fewer than 16",
        (32, 16, 3, 3): None,
    }
    assert {shape: pattern.exception(torch.Size(shape)) for shape in told} == told
    mask = scores((20, 32, 1, 1), 0) > 1
    moved = pattern.update(scores(mask.shape, 1), scores(mask.shape, 2), mask, Budget(9, 9, int(mask.sum())))
    assert torch.equal(moved.mask, mask)
