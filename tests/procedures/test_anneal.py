"""Annealing: densities of levels, lengths, rates, what goes on, what is on record, and refusals."""

import json
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.tables import accuracy_table, network_table
from dst.config.checks import check
from dst.config.schema import ConfigError, complete
from dst.options import OptionError
from dst.procedures.anneal import anneal
from dst.procedures.method import Length, Method
from dst.procedures.options import annealed, annealing_epochs
from dst.records.catalog import catalog
from dst.records.read import read_layers, read_metrics, read_networks, read_summary
from dst.run.build import build
from dst.run.feasible import check as check_feasible
from dst.run.forecast import planned_ledger
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.composed import compose_cells
from tests.processes import run, run_folder, run_together, traces
from tests.sparsity.test_catalogue import CONF
from tests.states import same

# -- densities and phases ----------------------------------------------------------------------------------------------


def test_the_published_densities():
    assert [round(density, 3) for density in annealed(0.6, 0.2, 5, 0.5)] == [0.482, 0.387, 0.310, 0.249, 0.200]
    assert [round(density, 3) for density in annealed(0.6, 0.1, 5, 0.3)] == [0.300, 0.210, 0.147, 0.102, 0.100]
    assert annealed(0.6, 0.2, 1, 0.5) == [0.2]


@given(target=st.floats(0.01, 0.5), more=st.floats(0.01, 0.49), most=st.floats(0.01, 1), levels=st.integers(1, 12))
def test_densities_fall_to_the_target_exactly_and_never_exceed_what_there_is(target, more, most, levels):
    most = max(most, target)
    found = annealed(target + more, target, levels, most)
    assert len(found) == levels
    assert found[-1] == target
    assert all(target <= after <= before <= most for before, after in pairwise(found))


def method(density=0.2):
    return Method(lr=lambda steps: lambda step: 1 - step / steps, update=lambda steps: None, density=density)


def test_levels_are_as_long_as_asked_and_the_last_has_the_rest():
    phases = anneal(Length(23, 6, 23 * 6), method(), level_epochs=3)
    assert [phase.steps for phase in phases] == [18, 18, 18, 18, 66]
    assert [phase.name for phase in phases] == [f"level {level}" for level in range(1, 6)]
    assert [phase.lr(0) for phase in phases] == [1] * 5  # the rate restarts
    assert [phase.lr(phase.steps) for phase in phases] == [0] * 5
    assert [phase.steps for phase in anneal(Length(23, 6, 23 * 6), method())] == [24, 24, 24, 24, 42]
    assert [phase.steps for phase in anneal(Length(23, 6, 25 * 5), method())] == [24, 24, 24, 24, 29]


@pytest.mark.parametrize(
    ("length", "of", "options", "told"),
    [
        (Length(4, 6, 24), method(), {}, "levels=5: a level would have less than one of 4 epochs"),
        (Length(9, 6, 54), method(), {"level_epochs": 2}, "level_epochs=2: of 9 epochs levels=5 leaves 1 for the last"),
        (Length(9, 6, 54), method(), {"start": 0.2}, "start=0.2: must be more than the density at the end, 0.2"),
        (Length(10, 6, 59), method(), {}, "steps=59: would leave 11 steps for the last level, less than the 12 of"),
        (Length(10, 6, 60), method(), {"levels": 0}, "levels=0: must be"),
        (Length(10, 6, 60), method(None), {}, "there is none: train in a single phase"),
    ],
)
def test_levels_that_cannot_be(length, of, options, told):
    with pytest.raises(ValueError, match=told):
        anneal(length, of, **options)
    assert isinstance(OptionError(""), ValueError)
    assert annealing_epochs(10, levels=5, level_epochs=None) == 2


# -- runs --------------------------------------------------------------------------------------------------------------

SMALL = (
    *("sparsity=edge_popup", "model=mlp", "model.hidden=[32]", "schedule.epochs=7", "schedule.batch_size=64"),
    *("data.val_fraction=0.5", "sparsity.reparametrize.every=5", "tracking=none", "tracking.progress=none"),
    *("hardware.threads=1", "schedule.lr.peak=0.5"),
)
"""7 epochs of 12 steps; the levels of annealing have one epoch, the last one three."""
ANNEALED = (*SMALL, "procedure=anneal")


def composed(*overrides):
    ((_, config),) = compose_cells(CONF, overrides, multirun=False)
    assert check(config) == []
    config = complete(config)
    check_feasible(config)
    return config


class Watcher(NoObserver):
    def __init__(self, training, stop_at=None):
        self.training, self.stop, self.stop_at = training, StopFlag(), stop_at
        self.networks, self.layers, self.saved = [], {}, None

    def on_network(self, network, state):
        self.networks.append((network.name, network.step, network.density, network.active))
        masks = state["sparsifier"]["masks"]
        assert sum(int(mask.sum()) for mask in masks.values()) == network.active
        assert all(not state["model"][f"{name}.weight"][~mask].any() for name, mask in masks.items())

    def on_layers(self, step, layers):
        self.layers[step] = [report.active for report in layers]

    def on_step(self, step):
        if step == self.stop_at:
            self.stop.requested = "SIGTERM"

    def on_checkpoint(self, step, state):
        self.saved = state


@cache
def annealing():
    training = build(composed(*ANNEALED)).training
    first = {layer.name: layer.weight.clone() for layer in training.sparsifier.topology.layers}
    edges = [mask.clone() for mask in training.sparsifier.weights.masks]
    planned = planned_ledger(training)
    watcher = Watcher(training)
    training.run(watcher, watcher.stop)
    return training, watcher, planned, first, edges


def test_a_level_begins_at_its_density_and_is_reported_at_its_end():
    training, watcher, _, first, edges = annealing()
    size = training.sparsifier.topology.size
    counts = [round(density * size) for density in annealed(0.6, 0.2, 5, training.sparsifier.edge_density)]
    assert [(name, step) for name, step, *_ in watcher.networks] == [
        ("level 1", 12), ("level 2", 24), ("level 3", 36), ("level 4", 48), ("level 5", 84)
    ]  # fmt: skip
    assert [active for *_, active in watcher.networks] == counts
    assert {step: sum(active) for step, active in watcher.layers.items()} == {
        **dict.fromkeys((0, 5, 10), counts[0]),
        **dict.fromkeys((12, 17, 22), counts[1]),  # at 12 the next level has begun
        **dict.fromkeys((24, 29, 34), counts[2]),
        **dict.fromkeys((36, 41, 46), counts[3]),
        **dict.fromkeys((48, *range(53, 84, 5), 84), counts[4]),
    }
    assert training.counters.initial_active == counts[0]
    for layer, mask in zip(training.sparsifier.topology.layers, edges, strict=True):
        assert torch.equal(layer.weight, first[layer.name])
        assert not first[layer.name][~mask].any()
    assert all(not (mask & ~edge).any() for mask, edge in zip(training.sparsifier.topology.masks, edges, strict=True))


def test_the_forecast_is_exact():
    training, _, planned, *_ = annealing()
    assert planned.state_dict() == training.ledger.state_dict()
    single = build(composed(*SMALL)).training
    assert planned_ledger(single).total < planned.total


def test_scores_of_inactive_edges_are_trained_and_that_is_counted():
    """Forward and to the inputs through active weights, two FLOPs each; the gradients of scores are those of edges."""
    training = build(composed(*SMALL)).training
    sparsifier, samples = training.sparsifier, training.train_batches.samples * 7
    edges = round(sparsifier.edge_density * sparsifier.topology.size)
    assert planned_ledger(training).total == samples * 2 * (2 * sparsifier.topology.active + edges)


@pytest.mark.parametrize("stop_at", [7, 12, 30, 48])
def test_resumed_inside_a_level_and_at_its_end(stop_at):
    whole, reference, *_ = annealing()
    begun = build(composed(*ANNEALED)).training
    watcher = Watcher(begun, stop_at)
    with pytest.raises(StopRequestedError):
        begun.run(watcher, watcher.stop)
    resumed = build(composed(*ANNEALED)).training
    resumed.load_state_dict(watcher.saved)
    rest = Watcher(resumed)
    resumed.run(rest, rest.stop)
    assert same(resumed.state_dict(), whole.state_dict())
    assert {**watcher.layers, **rest.layers} == reference.layers


def test_the_weights_of_the_best_validation_bring_their_masks(tmp_path):
    config = composed(*SMALL, "schedule.select=best_val", "schedule.lr.name=constant", "schedule.lr.peak=2")
    parts = build(config)
    training = parts.training
    training.run(NoObserver(), StopFlag())
    best = training.best
    assert best["step"] < training.total_steps
    last = training.sparsifier.state_dict()["masks"]
    assert not same(last, best["sparsifier"]["masks"])
    summary = training.finish(parts.test_batches)
    assert same(training.sparsifier.state_dict()["masks"], best["sparsifier"]["masks"])
    assert same(training.model.state_dict(), best["model"])
    assert training.evaluate(training.val_batches).accuracy == best["accuracy"]
    assert summary["sparsity/active"] == round(0.2 * training.sparsifier.topology.size)
    explored = sum(int(mask.sum()) for mask in training.sparsifier.topology.explored)
    assert summary["sparsity/rs"] == explored / training.sparsifier.topology.size


@pytest.mark.parametrize(
    "options",
    [
        ("schedule.accumulate=2", "schedule.clip_norm=1"),
        (
            "hardware.precision=bf16",
            "hardware.channels_last=true",
            "model=resnet20",
            "model.hidden=null",
            "schedule.epochs=1",
        ),
        ("schedule.optimizer.decay=weights", "schedule.optimizer.name=adamw", "schedule.optimizer.momentum=null"),
        ("sparsity.scope.dense_first=true", "sparsity.scope.dense_last=true", "model.hidden=[32,32,32]"),
        ("sparsity.distribution.name=dense", "sparsity.density=null"),
        ("correction=agent", "correction.gamma=1"),
    ],
    ids=lambda options: options[0],
)
def test_goes_with(options):
    """Scores change, and nothing else that is trained."""
    extra = ["schedule.optimizer.nesterov=null"] if "schedule.optimizer.name=adamw" in options else []
    training = build(composed(*SMALL, *options, *extra)).training
    trained = {id(parameter) for parameter in training.sparsifier.weights.parameters}
    before = [(p, p.detach().clone()) for p in training.model.parameters()]
    training.run(NoObserver(), StopFlag())
    assert all(torch.equal(now, was) == (id(now) not in trained) for now, was in before)
    training.sparsifier.verify()
    assert planned_ledger(build(composed(*SMALL, *options, *extra)).training).total == training.ledger.total


# -- records -----------------------------------------------------------------------------------------------------------

WHOLE = (*ANNEALED, "checkpoint.every_steps=5", "tracking.every_steps=6", "output.keep_networks=true")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(*WHOLE, cwd=folder)
    assert result.code == 0, result.output
    return run_folder(folder / "outputs")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_leaves_the_same_record(tmp_path, undisturbed):
    """Each attempt goes on from the step that the one before had saved, until a fault of its own."""
    saved = None
    for fault, step in (
        ("kill:anneal:1", None),  # in the first annealing step: there is nothing yet
        ("kill:step:8", 5),  # inside a level
        ("kill:count:1", 5),  # at a count
        ("kill:anneal:1", 12),  # in an annealing step: the end of the level before was saved
        ("kill:network:1", 20),  # at a level's end
        ("signal:SIGTERM:24", 24),
        ("kill:test:1", 84),
        ("", None),
    ):
        result = run(*WHOLE, cwd=tmp_path, fault=fault)
        assert result.code == {"kill": -9, "signal": 75, "": 0}[fault.partition(":")[0]], result.output
        assert saved is None or f"continuing from step {saved}," in result.output, fault
        saved = step
    folder = run_folder(tmp_path / "outputs")
    assert traces(folder) == traces(undisturbed)
    assert told(read_layers(folder)) == told(read_layers(undisturbed))


def told(rows):
    return [{key: value for key, value in row.items() if key not in ("attempt", "time")} for row in rows]


def test_what_is_on_record(undisturbed):
    summary, size = read_summary(undisturbed), 64 * 32 + 32 * 10
    assert summary["sparsity/nominal_density"] == 0.2
    assert summary["sparsity/edge_density"] == round(0.5 * size) / size
    assert summary["sparsity/active"] == round(0.2 * size) == 474
    assert summary["sparsity/initial_density"] == round(annealed(0.6, 0.2, 5, 0.5)[0] * size) / size
    assert summary["model/parameters"] == size + 42
    assert [row["name"] for row in read_networks(undisturbed)] == [f"level {level}" for level in range(1, 6)]
    kept = torch.load(undisturbed / "networks" / "level 1.pt", weights_only=True)
    assert sorted(kept["model"]) == ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]
    for name, mask in kept["sparsifier"]["masks"].items():
        assert not kept["model"][f"{name}.weight"][~mask].any()
    active = {row["step"]: row["sparsity/active"] for row in read_metrics(undisturbed) if "sparsity/active" in row}
    assert len(set(active.values())) == 5
    frame = catalog(undisturbed.parent)
    table = accuracy_table(frame)
    assert table[["method", "density", "target", "procedure"]].to_dict("records") == [
        {"method": "edge_popup", "density": "0.5", "target": "0.2", "procedure": "anneal"}
    ]
    assert [*network_table(frame)["network"]] == [f"level {level}" for level in range(1, 6)]
    name = json.loads((undisturbed / "run.json").read_text())["name"]
    assert name == "digits mlp edge_popup density=0.5 reparametrize.density=0.2 procedure=anneal seed=0"


def test_what_is_outside_the_scope_is_said_to_be_frozen(tmp_path):
    result = run(*SMALL, "sparsity.scope.dense_last=true", "schedule.max_steps=2", cwd=tmp_path)
    assert result.code == 0, result.output
    (line,) = [line.split() for line in result.output.splitlines() if "outside the scope" in line]
    assert line == ["outside", "the", "scope:", "fc2.weight", "320", "frozen"]
    result = run("-m", *SMALL, "sparsity.scope.dense_last=true", "schedule.max_steps=2", "seed=1", cwd=tmp_path)
    assert "outside the scope, frozen: 320 weights (fc2.weight)" in result.output


def test_two_processes_train_the_same_network(tmp_path):
    """Of gradients summed exactly; each has its own masks, which are compared at every count."""
    for name, more in (("strict", ()), ("fast", ("hardware.determinism=fast",))):
        folder = tmp_path / name
        folder.mkdir()
        results = run_together(*ANNEALED, "hardware.processes=2", *more, cwd=folder)
        assert [result.code for result in results] == [0, 0], "\n".join(result.output for result in results)
        summary = read_summary(run_folder(folder / "outputs"))
        assert summary["sparsity/active"] == 474
        assert summary["test/accuracy"] > 0.2


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(*overrides):
    ((_, config),) = compose_cells(CONF, overrides, multirun=False)
    return check(config)


REFUSED = {
    ("procedure=anneal", "sparsity=rigl_itop"): [
        "procedure.name=anneal does not go with sparsity.reparametrize.name=none: it leads learned masks to their "
        "sparsity.reparametrize.density, and there is none. Use procedure=single, or a method that has one, e.g. "
        "sparsity=edge_popup"
    ],
    ("procedure=anneal", "sparsity=str"): ["procedure.name=anneal does not go with sparsity.reparametrize.name=soft"],
    ("sparsity=edge_popup", "procedure=anneal", "procedure.start=0.2"): [
        "procedure.start=0.2: must be more than the density at the end, 0.2, to which it falls; choose a larger one"
    ],
    ("sparsity=edge_popup", "procedure=anneal", "schedule.epochs=4"): [
        "procedure.levels=5: a level would have less than one of 4 epochs; choose 4 or less, or train longer"
    ],
    ("sparsity=edge_popup", "procedure=anneal", "procedure.level_epochs=11"): [
        "procedure.level_epochs=11: of 50 epochs procedure.levels=5 leaves 6 for the last level, less than for the "
        "others; choose 10 or less, or fewer levels"
    ],
    ("sparsity=edge_popup", "procedure=anneal", "procedure.levels=0"): ["procedure.levels=0: must be"],
    ("sparsity=edge_popup", "procedure=anneal", "procedure.levels=1", "procedure.start=0.7"): [
        "procedure.start=0.7 would be ignored: procedure.levels=1 is at the last density. Use 0.6, or more levels"
    ],
    ("sparsity=edge_popup", "procedure=anneal", "schedule.lr.warmup_epochs=10"): [
        "schedule.lr.warmup_epochs=10.0 must be less than the 10 epochs of a level"
    ],
    ("sparsity=edge_popup", "procedure=sup_tickets"): [
        "procedure.name=sup_tickets does not go with sparsity.reparametrize.name=edge_popup"
    ],
    ("sparsity=edge_popup", "sparsity.reparametrize.density=0.5"): [
        "sparsity.reparametrize.density=0.5: must be less than the density of the first masks, 0.5, which active"
    ],
    ("sparsity=edge_popup", "sparsity.distribution.name=dense"): [
        "sparsity.density=0.5 would be ignored: sparsity 'edge_popup' has all weights in its first masks. Use null"
    ],
    ("sparsity=edge_popup", "sparsity.grow.name=random", "sparsity.update.every=10"): [
        "sparsity.update.every=10 would be ignored: masks are learned. Use null",
        "sparsity.grow.name=random does not go with sparsity.reparametrize.name=edge_popup, by which masks are learned",
    ],
    ("sparsity=static", "sparsity.reparametrize.every=7"): [
        "sparsity.reparametrize.every=7 would be ignored: masks are not learned. Use 50"
    ],
    ("sparsity=edge_popup", "sparsity.pattern.name=constant_fan_in"): [
        "sparsity.reparametrize.name=edge_popup changes how many weights a layer has, which sparsity.pattern.name="
    ],
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_refused(overrides):
    found = refused(*overrides)
    assert len(found) == len(REFUSED[overrides]), found
    for problem, text in zip(found, REFUSED[overrides], strict=True):
        assert problem.startswith(text)


@pytest.mark.parametrize(
    "slots",
    ["drop={name: magnitude}", "redistribute={name: magnitude}", "drop_fraction={name: constant}",
     "density_schedule={name: cubic, initial: 0.5, end: 0.5}"],
)  # fmt: skip
def test_nothing_else_moves_weights(slots):
    slot = slots.partition("=")[0]
    told_ = [text for text in refused("sparsity=edge_popup", f"sparsity.{slots}") if "masks are learned" in text]
    assert [text.partition(".name=")[0] for text in told_][-1:] == [f"sparsity.{slot}"]


def test_first_masks_that_are_too_sparse_once_the_network_is_known():
    options = ("sparsity.distribution.name=balanced", "sparsity.distribution.clip=true", "sparsity.density=0.9")
    with pytest.raises(
        ConfigError, match=r"sparsity\.reparametrize\.density=0\.8: would be [\d,]+ active weights, but"
    ):
        composed("sparsity=edge_popup", *options, "sparsity.reparametrize.density=0.8")
    with pytest.raises(ConfigError, match=r"^\W*sparsity\.reparametrize\.density=1e-05: would be 0 active weights"):
        composed(*SMALL, "sparsity.reparametrize.density=1e-5")
    with pytest.raises(ConfigError, match=r"schedule\.max_steps=100: would leave 0 steps for the last level"):
        composed("sparsity=edge_popup", "procedure=anneal", "schedule.max_steps=100")


def test_all_is_refused_at_once_with_exit_code_2(tmp_path):
    result = run("sparsity=rigl", "sparsity.reparametrize.name=edge_popup", "procedure=sup_tickets", cwd=tmp_path)
    assert result.code == 2
    for text in ("sparsity.reparametrize.density is missing", "sparsity.update.every=50 would be ignored",
                 "sparsity.drop.name=magnitude does not go", "procedure.name=sup_tickets does not go"):  # fmt: skip
        assert text in result.output


def test_a_run_that_goes_on_has_the_edges_of_its_checkpoint_whatever_was_drawn_before():
    """As with masks from a file: those that it finds in its own checkpoint are the active ones of then."""
    begun, goes_on = (
        build(composed("sparsity=edge_popup", f"sparsity.density={density}", "model.hidden=[24]")).training
        for density in (0.5, 0.25)
    )
    goes_on.load_state_dict(begun.state_dict())
    assert goes_on.sparsifier.edge_density == begun.sparsifier.edge_density
    assert goes_on.sparsifier.counts_at(0.4) == begun.sparsifier.counts_at(0.4)
    assert goes_on.ledger.flops.backward(begun.active) == begun.ledger.flops.backward(begun.active)
