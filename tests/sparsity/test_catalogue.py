"""Every method x model x optimizer: it composes, trains two updates on real digits, keeps its promises, resumes."""

import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from dst.config.checks import check
from dst.config.identity import run_id
from dst.config.schema import complete
from dst.run.build import build
from dst.run.feasible import check as check_feasible
from dst.training.checkpoint import Checkpoints
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.composed import compose_cells
from tests.states import same, states_of

CONF = Path(__file__).parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "sparsity").glob("*.yaml"))
MODELS = {
    "lenet_300_100": (),
    "resnet20": (),
    "wrn_22_2": ("data.size=8",),
    "vit_tiny": ("data.val_fraction=0.9", "schedule.batch_size=24"),  # as many steps
}
SHORT = (
    "schedule.epochs=1",
    "data.val_fraction=0.8",
    "schedule.batch_size=48",  # 6 steps of 287 samples
    "schedule.lr.peak=0.01",
    "schedule.optimizer.weight_decay=0.001",
    "tracking=none",
)
ADAMW = (
    "schedule.optimizer.name=adamw",
    "schedule.optimizer.momentum=null",
    "schedule.optimizer.nesterov=null",
    "schedule.optimizer.beta1=0.9",
)


def test_these_methods_are_the_same_composition_and_no_others():
    """As long as nothing else is overridden: two names of one run."""
    names = defaultdict(list)
    for method in METHODS:
        ((_, config),) = compose_cells(CONF, [f"sparsity={method}"], multirun=False)
        names[run_id(complete(config))].append(method)
    assert [same for same in names.values() if len(same) > 1] == [["dst", "rigl_itop"], ["random_pruning", "static"]]


def composed(method, model, options):
    # Layers of 300 and 100 outputs are in no blocks of 16.
    small = ("sparsity.pattern.block_size=4",) if method in ("dsb", "ssb") and model == "lenet_300_100" else ()
    few_rounds = ("sparsity.distribution.rounds=3", "sparsity.init.rounds=3") if method == "synflow" else ()
    overrides = [
        f"sparsity={method}",
        f"model={model}",
        *SHORT,
        "hardware.threads=1",
        *MODELS[model],
        *few_rounds,
        *small,
        *options,
    ]
    ((_, config),) = compose_cells(CONF, overrides, multirun=False)
    if config.sparsity.update.every is not None:
        config.sparsity.update.every = 2
    if config.sparsity.reparametrize.name != "none":
        config.sparsity.reparametrize.every = 2
    assert check(config) == []
    config = complete(config)
    check_feasible(config)
    return config


class Witness(NoObserver):
    """Looks at every update and at every checkpoint; asks to stop after one step."""

    def __init__(self, training, stop_after=None):
        self.training, self.stop, self.stop_after = training, StopFlag(), stop_after
        self.updates, self.saved = 0, None
        self.first = [report.active for report in training.sparsifier.layers]

    def on_step(self, step):
        assert_inactive_is_zero(self.training)
        if self.stop_after is not None and step == self.stop_after - 1:
            self.stop.requested = "SIGTERM"

    def on_layers(self, step, layers):
        self.updates += 1
        topology, update = self.training.sparsifier.topology, self.training.sparsifier.topology_update
        assert [report.active for report in layers] == [int(mask.sum()) for mask in topology.masks]
        for report, mask, pattern in zip(layers, topology.masks, topology.patterns, strict=True):
            assert report.active >= 1
            assert report.active == report.size or pattern.allows(mask)
        if (learned := self.training.sparsifier.learned) is not None:
            edges = self.training.sparsifier.weights.masks
            assert not any((mask & ~edge).any() for mask, edge in zip(topology.masks, edges, strict=True))
            assert learned.freezes_rest is False or [report.active for report in layers] == self.first
        elif update.redistribute is not None:
            assert sum(report.active for report in layers) == sum(self.first)
        elif update.density_curve is not None:
            assert topology.active == round(update.density_curve(step) * topology.size)
        elif not (topology.is_structured and ablates(topology.patterns[0])):
            assert [report.active for report in layers] == self.first

    def on_checkpoint(self, step, state):
        self.saved = step, state


def ablates(pattern):
    """Ablation deals a layer's weights out to fewer units, so their number is met up to rounding."""
    return getattr(pattern, "ablation", 0) > 0


def assert_inactive_is_zero(training):
    sparsifier = training.sparsifier
    if sparsifier.learned is not None:
        sparsifier.verify()
        for parameter, edges in zip(sparsifier.weights.parameters, sparsifier.weights.masks, strict=True):
            assert not any(state[~edges].any() for state in (parameter, *states_of(training.optimizer, parameter)))
        return
    for layer, mask in zip(sparsifier.topology.layers, sparsifier.topology.masks, strict=True):
        assert torch.count_nonzero(layer.weight[~mask]) == 0, layer.name
        for state in states_of(training.optimizer, layer.weight):
            assert torch.count_nonzero(state[~mask]) == 0, layer.name


def trained(config, *, stop_after=None, state=None):
    training = build(config).training
    if state is not None:
        training.load_state_dict(state)
    witness = Witness(training, stop_after)
    try:
        training.run(witness, witness.stop)
    except StopRequestedError:
        assert training.counters.step == stop_after
    return witness


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        (model, optimizer)
        for model in MODELS
        for optimizer in ("sgd", "adamw")
        if (model, optimizer) != ("vit_tiny", "sgd")
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_method(method, model, optimizer, tmp_path):
    keeps_its_promises(method, model, optimizer, tmp_path)


def keeps_its_promises(method, model, optimizer, tmp_path, options=()):
    config = composed(method, model, (*(ADAMW if optimizer == "adamw" else ()), *options))
    assert config.schedule.optimizer.name == optimizer
    assert optimizer == "adamw" or config.schedule.optimizer.nesterov
    whole = trained(config)
    dynamic = config.sparsity.update.every is not None
    counted = whole.training.sparsifier.learned is not None  # every other step, the last one included
    assert whole.training.sparsifier.updates == (3 if counted else 2 if dynamic else 0) == whole.updates
    begun = trained(config, stop_after=3)
    Checkpoints(tmp_path).save(*begun.saved)
    resumed = trained(config, state=Checkpoints(tmp_path).load_newest())
    assert same(resumed.training.state_dict(), whole.training.state_dict())
    (step, state), final = begun.saved, whole.training.state_dict()
    assert step == 3
    assert not same(trained_of(state), trained_of(final))  # what is compared does change


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_corrected_gradient(method, tmp_path):
    """Two epochs with AGENT, whose second one begins with an estimate; stopped within it, and continued."""
    options = ("correction=agent", "correction.gamma=1", "correction.variance_batches=2", "schedule.epochs=2")
    config = composed(method, "lenet_300_100", options)
    whole = trained(config)
    begun = trained(config, stop_after=8)
    Checkpoints(tmp_path).save(*begun.saved)
    resumed = trained(config, state=Checkpoints(tmp_path).load_newest())
    assert same(resumed.training.state_dict(), whole.training.state_dict())
    figures = whole.training.correction.figures(2)
    assert {"correction/estimate", "correction/variance_ratio"} < figures.keys()
    assert figures["train/compute_epochs"] > 2
    if method in ("dense", "static", "random_pruning", "set", "set_itop"):  # neither dense gradients nor probing
        assert figures["train/compute_epochs"] == pytest.approx(3 + 10 / 3)
    plain = composed(method, "lenet_300_100", options[-1:])
    states = [trained_of(witness.training.state_dict()) for witness in (trained(plain), whole)]
    assert not same(*states)


def trained_of(state):
    """Return what training changes: weights, and what they are computed from."""
    return [state["model"], state["sparsifier"].get("learned", {})]


def test_the_final_density_is_that_of_the_config():
    for method in ("gmp", "gmp_uniform", "granet", "granet_uniform"):
        sparsifier = trained(composed(method, "lenet_300_100", ())).training.sparsifier
        assert sparsifier.topology.active == round(0.1 * sparsifier.topology.size)


def test_set_itop_and_rigl_itop_end_with_different_masks():
    masks = [
        trained(composed(method, "lenet_300_100", ())).training.sparsifier.topology.masks
        for method in ("set_itop", "rigl_itop")
    ]
    assert all(not torch.equal(*pair) for pair in zip(*masks, strict=True))


def test_set_removes_the_asked_fraction_of_every_layer():
    config = composed("set", "lenet_300_100", ())
    config.sparsity.update.regrow = False  # so that what leaves is what the reports call dropped
    for report in trained(config).training.sparsifier.layers:
        assert report.dropped == report.grown == math.ceil(0.3 * report.active) < report.active


@pytest.mark.parametrize("method", ["snfs", "set", "rigl", "granet", "srigl", "nm_rigl", "dsb"])
def test_dynamic_methods_explore(method):
    training = trained(composed(method, "lenet_300_100", ())).training
    assert training.sparsifier.rs > 1.02 * max(training.sparsifier.density, 0.5 if method == "granet" else 0)


def test_without_blocks_and_with_its_options_dsb_is_rigl():
    options = ("sparsity.pattern.block_size=0", "sparsity.init.name=random", "sparsity.update.order=replaces_step")
    rigl, dsb = trained(composed("rigl", "resnet20", ())), trained(composed("dsb", "resnet20", options))
    assert rigl.updates == dsb.updates == 2
    assert same(rigl.training.state_dict(), dsb.training.state_dict())
