import pytest
import torch
from torch import nn

from dst.sparsity import Sparsifier
from dst.sparsity.density_schedule import cubic
from dst.sparsity.plan import UpdatePlan


def test_ramp_is_that_of_the_published_oracle_and_ends_at_the_target():
    plan = UpdatePlan(every=10, total_steps=200)
    curve = cubic(plan, 0.05, initial=0.5, end=0.5)
    published = [0.5, 0.37805, 0.2804, 0.20435, 0.1472, 0.10625, 0.0788, 0.06215, 0.0536, 0.05045, 0.05]
    assert [curve(10 * k) for k in range(11)] == pytest.approx(published, abs=1e-12)
    assert curve(100) == curve(200) == 0.05


def test_ramp_waits_for_its_start():
    curve = cubic(UpdatePlan(every=10, total_steps=200), 0.1, initial=1.0, start=0.25, end=0.75)
    assert [curve(10), curve(50)] == [1.0, 1.0]
    assert curve(100) == pytest.approx(0.1 + 0.9 / 8)
    assert curve(150) == 0.1


def test_a_window_without_updates_is_an_error():
    with pytest.raises(ValueError, match=r"no update between start=0\.5 and end=0\.52"):
        cubic(UpdatePlan(every=50, total_steps=200), 0.1, start=0.5, end=0.52)


@pytest.mark.parametrize(
    ("plan", "ramp", "told"),
    [
        (
            {"stop": 0.8},
            {"end": 0.9},
            r"end=0\.9: .* cut short at the last update \(plan\.stop=0\.8\); set end <= stop",
        ),
        ({"start": 0.25}, {"end": 0.5}, r"start=0\.0: updates begin later, at plan\.start=0\.25"),
    ],
)
def test_a_ramp_outside_the_time_of_updates_is_an_error(plan, ramp, told):
    with pytest.raises(ValueError, match=told):
        cubic(UpdatePlan(every=10, total_steps=1000, **plan), 0.1, **ramp)
    inside = {"stop": 0.9} if "stop" in plan else {"start": 0.0}
    cubic(UpdatePlan(every=10, total_steps=1000, **inside), 0.1, **ramp)


def test_ramp_that_ends_one_update_early_as_the_published_one():
    plan = UpdatePlan(every=10, total_steps=200)
    curve = cubic(plan, 0.05, initial=0.5, end=0.5, ends_early=True)
    sound = cubic(plan, 0.05, initial=0.5, end=0.5)
    assert [curve(10 * k) for k in range(10)] == [sound(10 * k) for k in range(10)]
    assert curve(100) == curve(200) == sound(90) == pytest.approx(0.05045, abs=1e-12)


@pytest.mark.parametrize(("stop", "on_last_step", "ends_at"), [(1.0, False, 90), (1.0, True, 100), (0.75, False, 70)])
def test_ramp_to_the_end_ends_at_the_last_update_that_takes_place(stop, on_last_step, ends_at):
    plan = UpdatePlan(every=10, total_steps=100, stop=stop, on_last_step=on_last_step)
    curve = cubic(plan, 0.1, end=stop)
    assert plan.due(ends_at)
    assert curve(ends_at) == 0.1 < curve(ends_at - 10)


@pytest.mark.parametrize(
    ("initial", "final", "told"),
    [
        (0.1, 0.1, r"initial=0.1: must be in \(density=0.1, 1\]"),
        (0.1, 0.5, r"initial=0.1: must be in \(density=0.5, 1\]"),
        (1.5, 0.1, r"initial=1.5: must be in \(density=0.1, 1\]"),
        (1.0, 0.0, r"density=0.0: must be in \(0, 1\)"),
    ],
)
def test_densities_that_do_not_fall(initial, final, told):
    with pytest.raises(ValueError, match=told):
        cubic(UpdatePlan(every=10, total_steps=100), final, initial=initial, end=0.5)


@pytest.mark.parametrize("when", [{"start": 0.6}, {"stop": 0.3}])
def test_the_density_is_final_when_the_network_has_it(when):
    """A curve that is at its end while updates wait, or have stopped, says nothing about the network."""
    model = nn.Linear(20, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    plan = UpdatePlan(every=2, total_steps=20, **when)
    curve = cubic(UpdatePlan(every=2, total_steps=20), 0.2, end=0.4)
    sparsifier = Sparsifier(
        model, optimizer, density=None, distribution="dense", plan=plan, density_curve=curve, drop=None, grow=None
    )
    final = []
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 20)).square().sum().backward()
        sparsifier.step()
        final.append(sparsifier.density_is_final)
        assert final[-1] == (sparsifier.topology.active <= 40)
    assert any(final) == ("start" in when)
