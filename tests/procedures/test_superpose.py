"""Averages of networks are what they say, and prune back to exact counts within the union of their masks."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dst.procedures.superpose import Superposed, as_superposed, caa, cima, counts_to_keep, within
from dst.sparsity.prune import prune_to
from dst.sparsity.select import count_true

W = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
T = torch.tensor([[2.0, 6.0], [0.0, 0.0]])


def network(weight, *, average_over="networks", bias=0.0, seen=0):
    """Return a network of one sparse layer, whose inactive weights are those that are zero."""
    tensors = {"w": weight, "b": torch.tensor([bias]), "seen": torch.tensor(seen)}
    return as_superposed(tensors, {"w": weight != 0}, average_over=average_over)


def test_caa_averages_over_all_networks_with_zeros():
    first = caa(network(W, bias=1.0, seen=5), network(T, bias=3.0, seen=9))
    assert first.tensors["w"].tolist() == [[3, 3], [0, 4]]
    assert (first.tensors["b"].item(), first.tensors["seen"].item(), first.networks) == (2, 9, 2)
    assert first.masks["w"].tolist() == [[True, True], [False, True]]
    second = caa(first, network(torch.tensor([[0.0, 0.0], [9.0, 1.0]]), bias=5.0))
    assert second.tensors["w"].tolist() == [[2, 2], [3, 3]]  # 2/3 of the one before, 1/3 of the ticket
    assert (second.tensors["b"].item(), second.networks) == (3, 3)


def test_caa_over_active_networks_divides_by_their_number():
    first = caa(network(W, average_over="active", bias=1.0), network(T, average_over="active", bias=3.0))
    assert first.tensors["w"].tolist() == [[3, 6], [0, 8]]
    assert first.counts["w"].tolist() == [[2, 1], [0, 1]]
    assert first.tensors["b"].item() == 2  # what is not sparse is a plain average
    cut = within(first, {"w": torch.tensor([[True, False], [False, True]])})
    assert (cut.tensors["w"].tolist(), cut.counts["w"].tolist()) == ([[3, 0], [0, 8]], [[2, 0], [0, 1]])
    again = caa(cut, network(torch.tensor([[6.0, 5.0], [0.0, 0.0]]), average_over="active"))
    assert again.tensors["w"].tolist() == [[4, 5], [0, 8]]  # a weight that was pruned begins anew


@pytest.mark.parametrize(("factor", "expected"), [(0.5, [[3, 3], [0, 4]]), (0.25, [[3.5, 1.5], [0, 6]])])
def test_cima_moves_towards_the_ticket(factor, expected):
    made = cima(network(W, bias=1.0, seen=5), network(T, bias=3.0, seen=9), factor=factor)
    assert made.tensors["w"].tolist() == expected
    assert (made.tensors["b"].item(), made.tensors["seen"].item()) == (1 + 2 * factor, 9)


def test_caa_is_torchs_averaged_model_bit_by_bit():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)) for _ in range(5)]
    averaged = AveragedModel(nets[0], use_buffers=True)
    made = None
    for net in nets:
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        net(torch.randn(8, 7))  # statistics of batches
        ours = as_superposed(copy.deepcopy(net.state_dict()), {}, average_over="networks")
        made = ours if made is None else caa(made, ours)
        averaged.update_parameters(net)
    for name, tensor in averaged.module.state_dict().items():
        assert torch.equal(made.tensors[name], tensor), name


# -- any networks ------------------------------------------------------------------------------------------------------

SHAPES = {"a": (3, 4), "b": (2, 5)}


@st.composite
def networks(draw):
    """Return tickets of random weights and masks, at least one weight active in every layer."""
    found = []
    for seed in range(draw(st.integers(2, 5))):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)) + seed)
        masks = {}
        for name, shape in SHAPES.items():
            masks[name] = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 1.0]))
            masks[name].view(-1)[draw(st.integers(0, 9))] = True
        tensors = {name: torch.randn(shape, generator=generator) * masks[name] for name, shape in SHAPES.items()}
        found.append((tensors, masks))
    return found


def union_of(parts):
    return {name: torch.stack([masks[name] for _, masks in parts]).any(0) for name in SHAPES}


@given(networks(), st.integers(2, 22), st.sampled_from(["global", "layer"]), st.sampled_from(["networks", "active"]))
def test_any_networks_are_pruned_to_exact_counts_within_their_union(parts, target, pool, average_over):
    made = None
    for tensors, masks in parts:
        ticket = as_superposed(tensors, masks, average_over=average_over)
        made = ticket if made is None else caa(made, ticket)
        tickets, union = count_true([*masks.values()]), [*made.masks.values()]
        counts = counts_to_keep(target, count_true(union), tickets, pool)
        kept = prune_to(counts, [made.tensors[name].abs() for name in made.masks], union)
        assert sum(count_true(kept)) == min(target, sum(count_true(union)))
        assert all(count >= 1 for count in count_true(kept))
        if pool == "layer":
            assert count_true(kept) == counts
            assert target != sum(tickets) or counts == tickets  # each layer has the ticket's own number
        made = within(made, dict(zip(made.masks, kept, strict=True)))
        for name in SHAPES:
            assert not (made.masks[name] & ~union_of(parts)[name]).any()
            assert not made.tensors[name][~made.masks[name]].any()


@given(networks(), st.sampled_from(["networks", "active"]))
def test_averages_of_any_networks_are_means(parts, average_over):
    """Over all of them, or over those in which a weight is active."""
    made = as_superposed(*parts[0], average_over=average_over)
    for tensors, masks in parts[1:]:
        made = caa(made, as_superposed(tensors, masks, average_over=average_over))
    assert made.networks == len(parts)
    for name, union in union_of(parts).items():
        assert torch.equal(made.masks[name], union)
        total = torch.stack([tensors[name].double() for tensors, _ in parts]).sum(0)
        active = torch.stack([masks[name] for _, masks in parts]).sum(0)
        divisor = active.clamp(min=1) if average_over == "active" else len(parts)
        torch.testing.assert_close(made.tensors[name].double(), total / divisor, rtol=1e-5, atol=1e-6)
        assert average_over == "networks" or torch.equal(made.counts[name], active.int())


def test_a_share_of_each_layer_where_the_ticket_has_another_number():
    """An ordinary one: 30 weights in all, in the proportion 40 : 20; and one whose union limits a layer."""
    assert counts_to_keep(30, [50, 30], [40, 20], "layer") == [20, 10]
    assert counts_to_keep(60, [41, 30], [40, 20], "layer") == [40, 20]
    assert counts_to_keep(66, [41, 30], [40, 20], "layer") == [41, 25]
    assert counts_to_keep(99, [41, 30], [40, 20], "layer") == [41, 30]  # all that there is
    assert counts_to_keep(99, [41, 30], [40, 20], "global") == 71


def test_a_network_survives_a_checkpoint(tmp_path):
    made = caa(network(W, average_over="active"), network(T, average_over="active"))
    torch.save(dict(vars(made)), tmp_path / "kept.pt")
    loaded = Superposed(**torch.load(tmp_path / "kept.pt", weights_only=True))
    assert loaded.networks == 2
    for part in ("tensors", "masks", "counts"):
        assert all(torch.equal(getattr(loaded, part)[name], value) for name, value in getattr(made, part).items())
