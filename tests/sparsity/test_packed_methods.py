"""Every method with packed weights beside the same one with masks, and continued after a stop, or the other way."""

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from dst.config.checks import check
from dst.config.schema import complete
from dst.run import build as building
from dst.run.build import build
from dst.training.checkpoint import Checkpoints
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.composed import compose_cells
from tests.sparsity.test_catalogue import ADAMW, CONF, METHODS, SHORT
from tests.states import same

PACKABLE = [method for method in METHODS if method not in ("dense", "edge_popup", "str")]
MORE = {"nm_rigl": ("sparsity.pattern.n=1",)}  # 2 of 4 is too dense
DYNAMIC = [
    method for method in PACKABLE if method not in ("static", "random_pruning", "snip", "grasp", "synflow", "ssb")
]


def net():
    """A small network without batch norm, which would magnify rounding where units are hardly connected."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 20, 1, padding=1, bias=False),  # a padding above the kernel less one, as in VGG-C
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(720, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@pytest.fixture(autouse=True)
def _own_net(monkeypatch):
    monkeypatch.setattr(building, "make_model", lambda *_: net())


@dataclass
class Seen(NoObserver):
    """What a run reports; the masks after its first update; the state at a step after which it stops."""

    training: Any
    stop_after: int | None = None
    layers: list[Any] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    networks: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    first: list[torch.Tensor] | None = None
    packed: set[str] = field(default_factory=set)
    saved: Any = None

    def __post_init__(self):
        self.stop = StopFlag()
        self.on_step(0)

    def on_step(self, step):
        self.packed |= set(getattr(self.training.sparsifier.weights, "packed", ()))
        if self.stop_after is not None and step == self.stop_after - 1:
            self.stop.requested = "SIGTERM"

    def on_layers(self, step, layers):
        self.layers.append((step, [report.row for report in layers]))
        if self.first is None:
            self.first = [mask.clone() for mask in self.training.sparsifier.topology.masks]

    def on_metrics(self, step, epoch, values):
        self.figures.append((step, {name: value for name, value in values.items() if not name.startswith("time/")}))

    def on_network(self, network, state):
        self.networks.append((network.name, network.step, network.active, network.loss))
        self.states.append(copy.deepcopy(state))

    def on_checkpoint(self, step, state):
        self.saved = step, copy.deepcopy(state)


@cache
def plain_config(method):
    overrides = [f"sparsity={method}", *SHORT, "hardware.threads=1", "sparsity.update.every=2"]
    ((_, config),) = compose_cells(CONF, overrides if method in DYNAMIC else overrides[:-1], multirun=False)
    return config


def configured(method, *options):
    """Return the config of a method; options are set in it, since composing takes longer than training."""
    config = copy.deepcopy(plain_config(method))
    for option in (*MORE.get(method, ()), *options):
        name, _, value = option.partition("=")
        *nodes, key = name.split(".")
        node = config
        for part in nodes:
            node = getattr(node, part)
        assert hasattr(node, key), name
        setattr(node, key, yaml.safe_load(value))
    assert check(config) == []
    return complete(config)


def built(root, method, compute, *options):
    return build(configured(method, *options, f"sparsity.compute={compute}", f"output.root={root}")).training


def trained(root, method, compute, *options, stop_after=None, state=None):
    """Train for six steps, or on from a state, or to a step."""
    training = built(root, method, compute, *options)
    if state is not None:
        training.load_state_dict(state)
    seen = Seen(training, stop_after)
    try:
        training.run(seen, seen.stop)
    except StopRequestedError:
        assert training.counters.step == stop_after
    return seen


def assert_close(one, other, where="state", rtol=1e-3, atol=2e-6):
    """Numbers that were computed are close; masks, counts, births and all else are equal."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            if key not in ("seconds", "logged_seconds"):
                assert_close(one[key], other[key], f"{where}.{key}", rtol, atol)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}.{number}", rtol, atol)
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride()), where
        if one.is_floating_point():
            assert torch.allclose(one, other, rtol, atol), f"{where}: {(one - other).abs().max()}"
        else:
            assert torch.equal(one, other), f"{where}: {(one != other).sum()} differ"
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=rtol, abs=atol), where
    else:
        assert one == other, where


def assert_alike(packed, masked, **tolerance):
    """Everything that a run leaves behind is close, and equal where it is no computed number."""
    assert packed.packed
    assert not masked.packed
    assert packed.layers == masked.layers
    assert packed.first is None or all(map(torch.equal, packed.first, masked.first))
    assert_close(packed.training.state_dict(), masked.training.state_dict(), **tolerance)
    assert_close(packed.figures, masked.figures, "figures", **tolerance)
    assert_close(packed.networks, masked.networks, "networks", **tolerance)
    assert_close(packed.states, masked.states, "networks", **tolerance)


SGD = ("schedule.lr.peak=0.1", "schedule.optimizer.weight_decay=0.01")
LIKE_ADAM = {"atol": 5e-4}
"""A twentieth of a step: Adam divides by the size of gradients, and so magnifies rounding where they are tiny."""


@pytest.mark.parametrize("method", PACKABLE)
def test_as_with_masks(method, root):
    """Positions, counts, births and records are equal, as no score is within rounding of a cut here."""
    for optimizer, tolerance in ((SGD, {}), (ADAMW, LIKE_ADAM)):
        masked = trained(root, method, "masked", *optimizer)
        packed = trained(root, method, "packed", *optimizer)
        assert_alike(packed, masked, **tolerance)
        assert packed.training.sparsifier.updates == (2 if method in DYNAMIC else 0)
        assert (packed.first is not None) == (method in DYNAMIC)


OPTIONS = {
    "clipped": ("schedule.clip_norm=0.05",),
    "clipped by value": ("schedule.clip_value=0.001",),
    "accumulated": ("schedule.accumulate=3",),
    "channels last": ("hardware.channels_last=true",),
    "best": ("schedule.select=best_val", "schedule.epochs=2"),
    "unfused decay": ("schedule.optimizer.decay=weights",),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("method", ["rigl", "granet", "snfs"])
def test_options_of_training(name, method, root):
    masked, packed = (trained(root, method, compute, *SGD, *OPTIONS[name]) for compute in ("masked", "packed"))
    assert_alike(packed, masked)


AGENT = ("correction.name=agent", "correction.gamma=1", "correction.variance_batches=2", "schedule.epochs=3")


@pytest.mark.parametrize("method", DYNAMIC)
def test_corrected_gradients(method, root):
    """Over three epochs, so that a mean gradient is used by weights that were grown after it was taken."""
    masked, packed = (trained(root, method, compute, *SGD, *AGENT) for compute in ("masked", "packed"))
    assert_alike(packed, masked, rtol=3e-3, atol=1e-5)
    assert {"correction/estimate", "correction/variance_ratio"} < packed.training.correction.figures(3).keys()


TICKETS = ("procedure.name=sup_tickets", "procedure.cycle_epochs=1", "procedure.cycle_rate=0.5", "schedule.epochs=4")
IMP = ("procedure.name=imp", "procedure.density=0.08", "procedure.keep=0.5", "schedule.epochs=2")
PROCEDURES = {
    "sup_tickets": TICKETS,
    "imp to first weights": (*IMP, "procedure.rewind=init"),
    "imp to an epoch": (*IMP, "procedure.rewind=epoch", "procedure.rewind_epoch=1"),
    "imp by gradients": (*IMP, "procedure.rewind=none", "procedure.criterion=snip"),
}


@pytest.mark.parametrize("name", PROCEDURES)
@pytest.mark.parametrize("method", ["rigl_itop", "set"])
def test_procedures(name, method, root):
    density = ("sparsity.density=0.25",) if "imp" in name else ()
    options = *SGD, *density, *PROCEDURES[name]
    masked, packed = (trained(root, method, compute, *options) for compute in ("masked", "packed"))
    assert_alike(packed, masked, rtol=3e-3, atol=1e-5)
    assert packed.networks


def test_what_is_decided_between_phases_is_told_before_it_is_saved(root):
    class Told(Seen):
        told = {}  # noqa: RUF012 - replaced, not changed

        def on_compute(self, step, decisions):
            self.told = {**self.told, **{d.layer: (step, vars(d)) for d in decisions}}

        def on_checkpoint(self, step, state):
            super().on_checkpoint(step, state)
            assert state["sparsifier"].get("compute", {}) == {name: d for name, (_, d) in self.told.items()}

    options = (*SGD, *IMP, "procedure.rewind=init", "sparsity.density=0.25", "hardware.determinism=fast")
    training = built(root, "static", "auto", *options)
    seen = Told(training)
    training.run(seen, seen.stop)
    ends = {sum(phase.steps for phase in training.phases[: n + 1]) for n in range(len(training.phases))}
    steps = {step for step, _ in seen.told.values()}
    assert steps <= {1, *ends}
    assert steps & ends


def test_half_precision(root):
    """Packed layers compute in single precision, within a run in bfloat16: what masks make of it, up to rounding."""
    options = (*SGD, "hardware.precision=bf16")
    masked, packed, exact = (
        trained(root, "set", *how) for how in (("masked", *options), ("packed", *options), ("masked", *SGD))
    )
    assert packed.layers[0] == masked.layers[0]
    ours, theirs, single = (
        torch.cat([w.flatten() for w in seen.training.model.state_dict().values()]) for seen in (packed, masked, exact)
    )
    assert 0 < (ours - single).norm() < (theirs - single).norm()  # fewer layers are rounded


# -- stopped and continued ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PACKABLE)
def test_continued_to_the_last_bit(method, root, tmp_path):
    """Before and after an update, which for GMP and GraNet is within the ramp; also with momentum and ages."""
    for optimizer in (SGD, ADAMW):
        whole = trained(root, method, "packed", *optimizer)
        for stop in (2, 3) if optimizer is SGD else (3,):
            begun = trained(root, method, "packed", *optimizer, stop_after=stop)
            assert begun.saved[0] == stop
            folder = tmp_path / f"{optimizer is SGD}-{stop}"
            folder.mkdir()
            Checkpoints(folder).save(*begun.saved)
            resumed = trained(root, method, "packed", *optimizer, state=Checkpoints(folder).load_newest())
            assert same(resumed.training.state_dict(), whole.training.state_dict()), (optimizer, stop)


@pytest.mark.parametrize("options", [AGENT, TICKETS], ids=["agent", "sup_tickets"])
@pytest.mark.parametrize("method", ["rigl", "granet", "snfs"])
def test_continued_within_more(method, options, root, tmp_path):
    if "sup_tickets" in options[0] and method == "granet":
        options = (*options, "sparsity.density_schedule.end=0.25")
    whole = trained(root, method, "packed", *SGD, *options)
    for stop in (5, 8, 14):
        begun = trained(root, method, "packed", *SGD, *options, stop_after=stop)
        folder = tmp_path / str(stop)
        folder.mkdir()
        Checkpoints(folder).save(*begun.saved)
        resumed = trained(root, method, "packed", *SGD, *options, state=Checkpoints(folder).load_newest())
        assert same(resumed.training.state_dict(), whole.training.state_dict()), stop


@pytest.mark.parametrize("method", PACKABLE)
def test_continued_the_other_way(method, root):
    """A checkpoint is the same, however weights were held: packed goes on with masks, and masks packed."""
    for optimizer, tolerance in ((SGD, {}), (ADAMW, LIKE_ADAM))[: 2 if method in DYNAMIC else 1]:
        whole = trained(root, method, "masked", *optimizer)
        for first, then in (("packed", "masked"), ("masked", "packed")):
            begun = trained(root, method, first, *optimizer, stop_after=3)
            assert begun.saved[0] == 3
            resumed = trained(root, method, then, *optimizer, state=begun.saved[1])
            assert resumed.packed if then == "packed" else not resumed.packed
            assert_close(resumed.training.state_dict(), whole.training.state_dict(), **tolerance)


def test_what_a_state_loads_is_what_it_saves(root):
    """To the last bit, with masks and packed: nothing is rounded or lost on the way."""
    for optimizer in (SGD, ADAMW):
        state = trained(root, "granet", "packed", *optimizer, stop_after=3).saved[1]
        for compute in ("masked", "packed"):
            training = built(root, "granet", compute, *optimizer)
            training.load_state_dict(copy.deepcopy(state))
            assert same(training.state_dict(), state)
