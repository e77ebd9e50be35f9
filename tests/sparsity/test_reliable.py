"""Reliable weights, counted by births when masks change, are those that a count at every single step finds."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.density_schedule import cubic
from dst.sparsity.pattern.unstructured import unstructured
from dst.sparsity.reliable import Reliable
from dst.sparsity.reparametrize import edge_popup, soft_threshold
from dst.sparsity.scope import Scope
from dst.sparsity.topology import Topology
from dst.training.decay import parameter_groups
from tests.states import same


class EveryStep:
    """Counts for each weight, at every step, for how many steps it has been active in a row: the definition."""

    def __init__(self, masks, steps):
        self.steps = steps
        self.streaks = [torch.zeros(mask.shape, dtype=torch.int64) for mask in masks]
        self.longest = [streak.clone() for streak in self.streaks]

    def step(self, masks):
        """Take a step with these masks."""
        self.streaks = [(streak + 1) * mask for streak, mask in zip(self.streaks, masks, strict=True)]
        self.longest = [torch.maximum(*pair) for pair in zip(self.longest, self.streaks, strict=True)]

    def change(self, masks):
        """Begin anew with whatever leaves, even if it returns before the next step."""
        self.streaks = [streak * mask for streak, mask in zip(self.streaks, masks, strict=True)]

    @property
    def counts(self):
        return [int((longest >= self.steps).sum()) for longest in self.longest]


def topology_of(masks):
    model = nn.Sequential(*(nn.Linear(mask.shape[1], mask.shape[0], bias=False) for mask in masks))
    return Topology(Scope().layers(model), masks, [unstructured() for _ in masks])


def bits(text):
    return torch.tensor([[mark == "#" for mark in text]])


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [0, 2, 2, 3, 3, 4, 4, 4]),  # whoever was ever active at a step
        (2, [0, 0, 2, 2, 3, 3, 4, 4]),
        (3, [0, 0, 0, 1, 1, 2, 2, 3]),  # the second leaves after two steps
        (4, [0, 0, 0, 0, 1, 1, 1, 1]),  # the third leaves after three, and the fourth has not been there longer
        (7, [0, 0, 0, 0, 0, 0, 0, 1]),
        (8, [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_sequence_by_hand(steps, expected):
    """After step 2 the second weight leaves and the third enters; after step 4 the fourth; after 5 the third leaves."""
    changes = {2: "#.#.", 4: "#.##", 5: "#..#"}
    reliable = Reliable(topology_of([bits("##..")]), steps)
    found = []
    for step in range(8):
        if step in changes:
            reliable.changed([bits(changes[step])], step)
        found += reliable.counts(step)
    assert found == expected


def test_a_weight_that_returns_has_to_begin_again_but_keeps_what_it_was():
    reliable = Reliable(topology_of([bits("##.")]), 3)
    reliable.changed([bits("#..")], 2)  # the second leaves at an age of two,
    reliable.changed([bits("##.")], 4)  # and returns
    assert reliable.counts(6) == [1]
    assert reliable.counts(7) == [2]
    reliable.changed([bits("#.#")], 8)
    assert reliable.counts(8) == [2]  # it was reliable,
    reliable.changed([bits("##.")], 9)
    assert reliable.counts(10) == [2]  # and stays so, whether it is there or not
    assert reliable.counts(20) == [2]  # the third was there for one step


def test_steps_count_over_phases():
    reliable = Reliable(topology_of([bits("#.")]), 5)
    reliable.begin_phase(3)
    reliable.changed([bits("##")], 0)
    assert (reliable.counts(1), reliable.counts(2), reliable.counts(4), reliable.counts(5)) == ([0], [1], [1], [2])


# -- against the definition --------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(1, 12),
    course=st.lists(
        st.tuples(st.sampled_from(["step"] * 5 + ["change", "one layer", "phase", "saved"]), st.integers(0, 2**20)),
        max_size=60,
    ),
)
def test_births_find_what_a_count_at_every_step_finds(steps, course):
    """Whatever changes when, over phases, and however often it is saved and restored."""
    drawn = torch.Generator().manual_seed(0)
    masks = [torch.rand(shape, generator=drawn) < 0.4 for shape in [(3, 5), (2, 4)]]
    reliable, truth, now = Reliable(topology_of(masks), steps), EveryStep(masks, steps), 0
    for action, seed in course:
        if action == "step":
            truth.step(masks)
            now += 1
        elif action == "phase":
            reliable.begin_phase(now)
            now = 0
        elif action == "saved":
            state = copy.deepcopy(reliable.state_dict())
            reliable = Reliable(topology_of([torch.ones_like(mask) for mask in masks]), steps)
            reliable.load_state_dict(state, masks)
        else:
            drawn = torch.Generator().manual_seed(seed)
            flips = [torch.rand(mask.shape, generator=drawn) < 0.3 for mask in masks]
            kept = 1 if action == "one layer" else len(masks)
            masks = [mask ^ flip if i < kept else mask for i, (mask, flip) in enumerate(zip(masks, flips, strict=True))]
            reliable.changed(masks, now)
            truth.change(masks)
        assert reliable.counts(now) == truth.counts


PLAN = UpdatePlan(every=3, total_steps=30)
RETURNING = UpdatePlan(every=3, total_steps=30, regrow=True, returning_weights="reset")
RAMP = {"plan": PLAN, "density_curve": cubic(PLAN, 0.2, initial=0.9, end=0.7)}
METHODS = {
    "dense": {"density": None, "distribution": "dense"},
    "static": {"density": 0.3},
    "rigl": {"density": 0.3, "plan": PLAN},
    "instead of the step": {"density": 0.3, "plan": UpdatePlan(every=3, total_steps=30, order="replaces_step")},
    "what leaves may return": {"density": 0.3, "plan": RETURNING, "drop_fraction": 0.6, "grow": "random"},
    "redistributed": {"density": 0.3, "plan": PLAN, "grow": "random", "redistribute": "magnitude"},
    "gmp": {"density": 0.9, **RAMP, "drop": None, "grow": None},
    "granet": {"density": 0.9, **RAMP},
    "edge_popup": {"density": 0.6, "reparametrize": partial(edge_popup, density=0.3), "count_every": 4},
    "str": {
        **{"density": None, "distribution": "dense", "count_every": 4},
        "reparametrize": partial(soft_threshold, threshold_init=-3.0, threshold_decay=0.001),
    },
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))


def held(method, kind="sgd", **options):
    """Return a model, held sparse by a method, with its optimizer."""
    model, makes = net(), {"sgd": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.AdamW}
    sparsifier = Sparsifier(model, None, **METHODS[method], **options)
    groups = parameter_groups(model, "all", sparsifier.weights.parameters, sparsifier.weights.groups)
    sparsifier.attach(makes[kind](groups, lr=0.05))
    return model, sparsifier


def step(model, sparsifier):
    generator = torch.Generator().manual_seed(sparsifier.steps)
    inputs, labels = torch.randn(8, 20, generator=generator), torch.randint(3, (8,), generator=generator)
    sparsifier.optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    sparsifier.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_counts_what_a_count_at_every_step_finds(method, steps):
    """Learned masks as they were counted: here every four steps."""
    model, sparsifier = held(method, reliable_steps=steps)
    truth = EveryStep(sparsifier.topology.masks, steps)
    for _ in range(30):
        truth.step(sparsifier.topology.masks)
        step(model, sparsifier)
        assert [report.reliable for report in sparsifier.layers] == truth.counts
        assert sparsifier.rs_reliable == sum(truth.counts) / sparsifier.topology.size <= sparsifier.rs
    assert sparsifier.rs_reliable > 0
    assert (sparsifier.rs_reliable < sparsifier.rs) == any(
        report.explored > report.reliable for report in sparsifier.layers
    )


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_counting_changes_nothing_that_is_trained(method, kind):
    (model, counts), (twin, does_not) = held(method, kind, reliable_steps=4), held(method, kind)
    for _ in range(20):
        step(model, counts)
        step(twin, does_not)
    state = counts.state_dict()
    assert state.pop("reliable")["steps"] == 4
    assert same(state, does_not.state_dict())
    assert same(model.state_dict(), twin.state_dict())
    assert same(counts.optimizer.state_dict(), does_not.optimizer.state_dict())
    assert does_not.rs_reliable is None
    assert all("reliable" not in report.row for report in does_not.layers)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_goes_on_as_if_nothing_had_happened(method):
    model, sparsifier = held(method, reliable_steps=7)
    for _ in range(13):
        step(model, sparsifier)
    saved = copy.deepcopy([model.state_dict(), sparsifier.optimizer.state_dict(), sparsifier.state_dict()])
    other, again = held(method, reliable_steps=7)
    for part, state in zip([other, again.optimizer, again], saved, strict=True):
        part.load_state_dict(state)
    for _ in range(12):
        step(model, sparsifier)
        step(other, again)
        assert [report.reliable for report in again.layers] == [report.reliable for report in sparsifier.layers]
    assert same(again.state_dict(), sparsifier.state_dict())


def test_going_on_with_another_number_of_steps_is_refused():
    _, without = held("rigl")
    _, with_five = held("rigl", reliable_steps=5)
    _, with_six = held("rigl", reliable_steps=6)
    with pytest.raises(ValueError, match=r"^reliable_steps=6: the stored state was counted without reliable_steps"):
        with_six.load_state_dict(without.state_dict())
    with pytest.raises(ValueError, match=r"counted with reliable_steps=5, .* Go on with reliable_steps=5, or train"):
        with_six.load_state_dict(with_five.state_dict())
    without.load_state_dict(with_six.state_dict())  # who does not count any more need not know
    assert "reliable" not in without.state_dict()


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises((ValueError, TypeError), match="reliable_steps"):
        held("rigl", reliable_steps=steps)
