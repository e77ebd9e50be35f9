"""The choice between a mask and packed weights: how candidates take turns, and what they are given."""

import pytest
import torch

from dst.kernels import choice
from dst.kernels.choice import Timing, least, timed
from dst.kernels.shape import Shape


class Clock:
    """Time that passes in actions only, which are noted."""

    def __init__(self):
        self.now, self.taken = 100.0, []

    def __call__(self):
        return self.now

    def action(self, name, *seconds):
        left = list(seconds)

        def act():
            self.taken.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return act


def test_the_faster_one_is_chosen_and_masks_if_nothing_is_gained():
    assert Timing(0.1, masked_ms=3.0, packed_ms=2.0).choice == "packed"
    assert Timing(0.1, masked_ms=2.0, packed_ms=3.0).choice == "masked"
    assert Timing(0.1, masked_ms=2.0, packed_ms=2.0).choice == "masked"


def test_candidates_take_turns_and_their_least_counts_but_not_that_of_the_first_round():
    clock = Clock()
    actions = {"a": clock.action("a", 0.5, 4.0, 2.0, 3.0), "b": clock.action("b", 9.0, 1.0, 5.0, 0.75)}
    assert least(actions, budget_s=25.0, clock=clock) == {"a": 2.0, "b": 0.75}
    assert clock.taken == ["a", "b"] * 4  # 9.5 s to warm up, then 5, 7, 3.75: the last round ends beyond 25


def test_slow_candidates_are_timed_once():
    clock = Clock()
    assert least({"a": clock.action("a", 3.0), "b": clock.action("b", 2.0)}, 0.2, clock) == {"a": 3.0, "b": 2.0}
    assert clock.taken == ["a", "b", "a", "b"]


def test_fast_candidates_are_timed_a_few_times():
    clock = Clock()
    least({"a": clock.action("a", 1e-6)}, 10.0, clock)
    assert len(clock.taken) == 1 + choice.MOST_ROUNDS


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("input_gradient", [True, False])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_both_candidates_compute_what_the_layer_does(kernels, monkeypatch, kind, input_gradient, autocast):
    if kind == "linear":
        shape, mask = Shape(20, 33), torch.rand(33, 20) < 0.3
    else:
        shape, mask = Shape(20, 33, 9, 8, (3, 3), (2, 1), (1, 1)), torch.rand(33, 20, 3, 3) < 0.3
    seen = []

    def passes(forward, x, weight, dy, input_gradient):
        x.requires_grad_(input_gradient)
        weight.requires_grad_()
        y = forward(x, weight)
        y.backward(dy)
        seen.append((x, weight, y))
        return lambda: None

    monkeypatch.setattr(choice, "_both_passes", passes)
    timed(kernels, shape, 18, mask, autocast=autocast, input_gradient=input_gradient)
    (x, weight, y), (packed_x, values, packed_y) = seen
    size = (18, 20) if kind == "linear" else (18, 20, 9, 8)
    assert x.shape == packed_x.shape == size
    assert x.dtype == packed_x.dtype == y.dtype == (autocast or torch.float32)
    assert packed_y.dtype == torch.float32
    assert y.shape == packed_y.shape
    assert (x.grad is not None) == (packed_x.grad is not None) == input_gradient
    assert weight.shape == mask.shape
    assert weight.count_nonzero() == len(values) == mask.sum()
    assert weight.grad is not None
    assert values.grad is not None
    if kind == "convolution":
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert packed_y.is_contiguous(memory_format=torch.channels_last)


def test_a_timing_knows_its_density_and_draws_no_random_numbers_of_the_run(kernels):
    mask = torch.zeros(16, 32, dtype=torch.bool)
    mask[0, :8] = True
    state = torch.get_rng_state()
    found = timed(kernels, Shape(32, 16), 32, mask, budget_s=0.0)
    assert found.density == 8 / 512
    assert found.masked_ms > 0 < found.packed_ms
    assert torch.equal(torch.get_rng_state(), state)
