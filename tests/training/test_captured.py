"""Captured steps and evaluations are the eager ones, bit by bit: shown on a CPU by tapes, which stand in for graphs."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch

from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.data.resident import FixedBatches
from dst.run.build import build
from dst.sparsity import select
from dst.sparsity.weights import adam_age, adam_correction
from dst.training import captured
from dst.training.captured import CaptureError
from dst.training.guard import DivergedError
from dst.training.replays import Capture, Replays
from dst.training.step import plain_state
from tests.sparsity import test_catalogue as catalogue
from tests.training import captures, tape
from tests.training.captures import Log, Reading, composed, differing
from tests.training.tape import HostError, Tape, Tapes


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    """Select and correct as on a device, in an order that needs no numbers on the host."""
    monkeypatch.setattr(select, "_HOST", "none")
    monkeypatch.setattr(adam_age, "part_for", lambda device, size: adam_correction.AllWeights)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which is not taken where operations are recorded
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def taped(training, *, is_required=False):
    """Let a training replay tapes."""
    tapes = Tapes()
    training.capture = Capture(tapes, None, is_required)
    training.replays = Replays(training._step, training.capture)
    return tapes


def trained(config, *, tape=False, **how):
    """Train, and return the training, what it has told, and its tapes."""
    training, log = captures.trained(config, begin=taped if tape else None, **how)
    return training, log, training.capture.graphs if tape else None


def is_captured_as_it_is_eagerly(config):
    """Train eagerly, and by tapes with a stop in the midst of the second epoch; compare everything, bit by bit."""
    training, _ = captures.compare(
        lambda **how: captures.trained(config, **how), partial(captures.trained, config, begin=taped)
    )
    knows_all_that_is_read(training, training.capture.graphs)
    return training, training.capture.graphs


def knows_all_that_is_read(training, tapes):
    """A tensor that a tape meets and nobody names could be replaced unseen."""
    replays = training.replays
    for work in (replays._training, *replays._evaluations.values()):
        read = [one for one in work.captured._reads() if isinstance(one, torch.Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in read}
        for graph in work.captured._graphs:
            met = tapes.outside(graph)
            assert len(met) > 5
            assert [tensor.shape for place, tensor in met.items() if place not in known] == []


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, ()) for method in catalogue.METHODS if method not in ("dst", "random_pruning")),
        *((method, catalogue.ADAMW) for method in ["rigl_itop", "gmp", "snfs", "str", "edge_popup"]),
    ],
)
def test_every_method(method, options):
    is_captured_as_it_is_eagerly(composed(method, options=options))


@pytest.mark.parametrize(
    ("method", "model", "options"),
    [
        ("granet", "wrn_22_2", ("correction=agent", "model.dropout=0.3", "schedule.epochs=2")),
        ("rigl", "resnet20", ("schedule.clip_norm=0.1", "schedule.clip_value=0.01")),
        ("rigl", "resnet20", ("hardware.precision=bf16", "hardware.channels_last=true")),
        (
            "granet",
            "lenet_300_100",
            ("hardware.precision=fp16", "schedule.accumulate=2", "schedule.label_smoothing=0.1"),
        ),
        ("set", "lenet_300_100", ("correction=agent", "correction.proxy=gradient", "correction.gamma=1")),
        ("rigl", "lenet_300_100", ("procedure=imp", "procedure.keep=0.5", "procedure.rewind=init")),
    ],
    ids=["corrected-dropout", "clipped", "bf16-channels-last", "fp16-accumulated", "corrected-fully", "imp"],
)
def test_with_everything_else(method, model, options):
    is_captured_as_it_is_eagerly(composed(method, model, options))


def test_one_capture_serves_a_run_whose_topology_moves():
    training, tapes = is_captured_as_it_is_eagerly(composed("rigl"))
    assert training.sparsifier.updates == 5
    assert len(tapes.made) == 2  # the step and the evaluation


def test_phases_with_actions_between_them():
    """Sup-tickets: phases, averages of weights, statistics anew, other masks."""
    options = ("procedure=sup_tickets", "schedule.epochs=6", "procedure.cycle_epochs=1")
    is_captured_as_it_is_eagerly(composed("set_itop", "lenet_300_100", options))


# -- what must not go unseen -------------------------------------------------------------------------------------------


def test_a_number_of_the_host_would_freeze(monkeypatch):
    """So that these tests see it: a rate that is no tensor."""
    config = composed("static")
    eager, _, _ = trained(config)
    monkeypatch.setattr("dst.training.step.Step.fix_rate", lambda self: None)
    frozen, _, _ = trained(config, tape=True)
    assert frozen.replays.steps > 20
    assert len(differing(eager, frozen)) > 5


def halve_a_momentum(optimizer):
    state = optimizer.state_dict()["state"][0]
    state["momentum_buffer"] = state["momentum_buffer"] / 2


def load_the_state(optimizer):
    """As a rewind does, with other tensors and the rate of then."""
    optimizer.load_state_dict(copy.deepcopy(plain_state(optimizer)))


def double_the_decay(optimizer):
    for group in optimizer.param_groups:
        group["weight_decay"] *= 2


@pytest.mark.parametrize("replace", [halve_a_momentum, load_the_state, double_the_decay])
def test_a_tensor_that_somebody_replaces_is_met_anew(replace):
    config = composed("static")
    one, other = build(config).training, build(config).training
    tapes = taped(other)
    for training in (one, other):
        batches, log = training.train_batches.epoch(0), Log()
        for step in range(8):
            if step == 6:
                replace(training.optimizer)
                training.replays.doubt()
            if training.replays.prepare(batches, training.train_batches):
                training.replay_step(log)
            else:
                training.train_step(*next(batches), log)
    assert differing(one, other) == []
    assert [tape.replays for tape in tapes.made] == [3, 2]


@pytest.mark.parametrize("is_required", [False, True])
def test_a_module_that_reads_the_host_stands_in_the_way(is_required, monkeypatch):
    monkeypatch.setattr(captured, "_LIBRARIES", (*captured._LIBRARIES, Path(tape.__file__)))
    config = composed("rigl")
    _, expected, _ = trained(config)
    training, log = build(config).training, Log()
    training.model.fc2 = Reading(training.model.fc2)
    taped(training, is_required=is_required)
    if is_required:
        with pytest.raises(CaptureError, match=r"the step: .*Tensor.item .in forward, captures.py:"):
            training.run(log, log.stop)
        return
    training.run(log, log.stop)
    assert training.replays.steps == 0
    (line,) = log.lines
    assert line.startswith("not captured, so that the host launches every kernel: the step: ")
    assert "in forward, captures.py:" in line
    assert expected.rows == log.rows


def test_streamed_batches_stand_in_the_way():
    training, log = build(composed("static")).training, Log()
    epoch = training.train_batches.epoch
    training.train_batches.epoch = lambda *args, **options: iter([*epoch(*args, **options)])
    taped(training)
    training.run(log, log.stop)
    assert log.lines == ["not captured, so that the host launches every kernel: batches are streamed from the host"]
    assert training.replays.steps == 0


def test_what_is_known_to_stand_in_the_way_is_said_at_once():
    training, log = build(composed("static")).training, Log()
    training.replays = Replays(training._step, Capture(None, "hardware.processes=2: a step waits"))
    training.run(log, log.stop)
    assert log.lines == ["not captured, so that the host launches every kernel: hardware.processes=2: a step waits"]
    training.replays = Replays(training._step, Capture(None, "hardware.processes=2: a step waits", is_required=True))
    with pytest.raises(CaptureError, match=r"hardware.processes=2: a step waits"):
        training.run(log, log.stop)


def test_a_replay_that_is_not_finite_is_seen_and_leaves_the_weights():
    training, log = build(composed("static")).training, Log()
    taped(training)
    batches = training.train_batches.epoch(0)
    for step in range(7):
        if step == 6:
            with torch.no_grad():
                training.model.fc3.bias.fill_(torch.nan)
            before = training.model.fc1.weight.clone()
        if step < 3:
            training.train_step(*next(batches), log)
        else:
            assert training.replays.prepare(batches, training.train_batches)
            training.replay_step(log)
        if step < 6:
            training._guard.check()
    with pytest.raises(DivergedError, match="at step 7"):
        training._guard.check(now=True)
    assert torch.equal(before, training.model.fc1.weight)


# -- the batches that a replay gathers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [Augment(), Augment(crop_padding=2, flip=True)])
def test_gathered_batches_are_those_of_the_epoch(augment):
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    loader = Batches(Split(images, torch.arange(50) % 10), batch_size=16, augment=augment, shuffle=True)
    fixed = FixedBatches(loader.epoch(0), 16)
    places = [tensor.data_ptr() for tensor in fixed.tensors]
    for number in (1, 0):
        epoch = loader.epoch(number)
        fixed.begin(epoch)
        for index, (inputs, labels) in enumerate(loader.epoch(number)):
            if index < 3:  # the last one is smaller
                assert epoch.next_part == slice(16 * index, 16 * index + 16)
                fixed.point(epoch.next_part.start)
                epoch.skip()
                assert all(map(torch.equal, (inputs, labels), fixed.gather()))
                assert fixed.number.tolist() == [index]
        assert epoch.left == 1
    assert places == [tensor.data_ptr() for tensor in fixed.tensors]


# -- the tape ----------------------------------------------------------------------------------------------------------


def test_a_tape_repeats_operations_on_the_same_memory_and_undoes_the_first_ones():
    number, total = torch.tensor([2.0, 3.0]), torch.zeros(2)
    recorded = Tape()
    recorded.capture(lambda: total.add_(number * number))
    assert total.tolist() == [0, 0]
    recorded.replay()
    number.mul_(2)
    recorded.replay()
    assert total.tolist() == [4 + 16, 9 + 36]


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0]),
        lambda x: torch.as_tensor([1.0]),
        lambda x: x.numpy(),
        torch.unique,
    ],
)
def test_a_tape_refuses_what_a_graph_would(reads):
    with pytest.raises(HostError, match="not permitted when stream is capturing"):
        Tape().capture(lambda: reads(torch.ones(3)))
