"""Captured steps and evaluations are the eager ones on a GPU, bit by bit, and wait for nothing.

About two minutes with ``-n 12`` on an H100, as reckoned from what the other tests here take.
"""

import re
from functools import partial

import pytest
import torch

from dst.run.build import build
from dst.training.captured import CaptureError
from tests.sparsity import test_catalogue as catalogue
from tests.training import captures
from tests.training.captures import Log, Reading, composed, differing

pytestmark = pytest.mark.slow

STRICT = ("hardware=gpu", "hardware.determinism=strict")


def configured(method, model="resnet20", options=(), *, capture):
    config = composed(method, model, (*STRICT, *options))
    config.hardware.capture = capture
    return config


def compare(method, model="resnet20", options=()):
    """Compare a captured run, which is stopped and continued, with an eager one; return its training and its lines."""
    never, always = (configured(method, model, options, capture=capture) for capture in ("never", "always"))
    training, after = captures.compare(partial(captures.trained, never), partial(captures.trained, always))
    assert training.replays._evaluations
    assert sum(line.startswith("captured an evaluation in") for line in after.lines) == 1
    return training, after.lines


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", [name for name in catalogue.METHODS if name not in ("dst", "random_pruning")])
def test_every_method(method, optimizer):
    compare(method, options=catalogue.ADAMW if optimizer == "adamw" else ())


@pytest.mark.parametrize(
    ("method", "model", "options"),
    [
        ("granet", "wrn_22_2", ("correction=agent", "model.dropout=0.3", "schedule.epochs=2")),
        ("rigl", "wrn_22_2", ("model.dropout=0.3", "schedule.epochs=2", "schedule.accumulate=2")),
        ("set", "lenet_300_100", ("correction=agent", "correction.proxy=gradient", "correction.gamma=1")),
        ("rigl", "resnet20", ("schedule.clip_norm=0.1", "schedule.clip_value=0.01")),
        ("rigl", "resnet20", ("hardware.precision=bf16", "hardware.channels_last=true")),
        ("granet", "resnet20", ("hardware.precision=fp16", "schedule.accumulate=2", "schedule.label_smoothing=0.1")),
        ("rigl_itop", "resnet20", ("hardware.precision=fp16", "schedule.clip_norm=0.1", *catalogue.ADAMW)),
        ("rigl", "resnet20", ("hardware.precision=tf32",)),
        ("rigl_itop", "vit_tiny", ("data.val_fraction=0.8", *catalogue.ADAMW)),
        ("rigl", "lenet_300_100", ("hardware.compile=true",)),
        ("rigl", "resnet20", ("procedure=imp", "procedure.keep=0.5", "procedure.rewind=init")),
        ("set_itop", "resnet20", ("procedure=sup_tickets", "schedule.epochs=6", "procedure.cycle_epochs=1")),
    ],
    ids=[
        *("corrected-dropout", "dropout-accumulated", "corrected-fully", "clipped", "bf16-channels-last"),
        *("fp16-accumulated", "fp16-clipped-adamw", "tf32", "attention", "compiled", "imp", "sup-tickets"),
    ],
)
def test_with_everything_else(method, model, options):
    compare(method, model, options)


def test_what_graphs_hold_is_told():
    training, lines = compare("static")
    held = training.capture.graphs.held
    assert 2**20 < held <= torch.cuda.memory_reserved()
    told = [re.search(r"; graphs hold ([\d,]+) MiB$", line) for line in lines]
    assert all(told)
    assert 0 < int(told[0][1].replace(",", "")) <= held / 2**20 + 1


@pytest.mark.parametrize("model", ["lenet_300_100", "resnet20"])
def test_graphs_share_no_memory_with_anybody_when_others_go(model):
    """Torch frees a workspace of cuBLAS with any graph of its stream, whoever else reads it (pytorch 193402)."""
    ways = [configured("static", model, capture=capture) for capture in ("never", "always")]
    trainings = [build(config).training for config in ways]
    litter = []
    for training in trainings:
        log, batches = Log(), training.train_batches.epoch(0)
        for step in range(11):
            if step in (6, 8):  # captured anew: the graph before goes after that
                for own in training.optimizer.state.values():
                    own["momentum_buffer"] = own["momentum_buffer"].clone()
                training.replays.doubt()
            if step in (5, 9):
                training.evaluate(training.val_batches)
            if step in (7, 10):
                training.replays._evaluations.clear()
                sizes = [2**19, 2**22, *2 * [2**25], *8 * [2**23]]
                litter += [torch.full((size,), 7, dtype=torch.uint8, device="cuda") for size in sizes]
            if training.replays.prepare(batches, training.train_batches):
                training.replay_step(log)
            else:
                training.train_step(*next(batches), log)
            training._guard.check()
    eager, captured = trainings
    assert (eager.replays.steps, captured.replays.steps) == (0, 8)
    assert differing(eager, captured) == []
    assert eager.evaluate(eager.val_batches) == captured.evaluate(captured.val_batches)
    assert all(bool((piece == 7).all()) for piece in litter)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_module_that_reads_the_host_is_trained_eagerly(backward):
    """As if nothing had been tried, masks of dropout included."""

    def read(training):
        training.model.relu = Reading(training.model.relu, backward=backward)

    options = ("model.dropout=0.3", "schedule.epochs=2")
    never, auto, always = (
        partial(captures.trained, configured("rigl", "wrn_22_2", options, capture=capture), begin=read)
        for capture in ("never", "auto", "always")
    )
    (eager, expected), (training, log) = never(), auto()
    assert (training.replays.steps, expected.lines) == (0, [])
    (line,) = log.lines
    assert line.startswith("not captured, so that the host launches every kernel: the step: ")
    assert f"(in {'backward' if backward else 'forward'}, captures.py:" in line
    assert differing(eager, training) == []
    assert log.rows == expected.rows
    with pytest.raises(CaptureError, match=r"the step: .* \(in (forward|backward), captures.py:"):
        always()
    assert not torch.cuda.is_current_stream_capturing()
    compare("rigl", "wrn_22_2", options)  # others are captured afterwards


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("static", ()),
        ("snfs", ()),
        ("str", ()),
        ("edge_popup", ()),
        ("rigl_itop", catalogue.ADAMW),
        ("set_itop", ("schedule.clip_norm=0.1", "schedule.clip_value=0.01")),
        ("granet", ("correction=agent", "correction.gamma=1")),
        ("rigl", ("hardware.precision=fp16",)),
    ],
)
def test_a_replayed_step_never_waits_for_the_device(method, options):
    config = composed(method, "resnet20", ("hardware=gpu", "hardware.capture=always", *options))
    rare = config.sparsity.reparametrize if config.sparsity.update.every is None else config.sparsity.update
    rare.every = 12  # no step is among these 8 that waits for what it does then
    training, log = build(config).training, Log()
    training.correction.begin_epoch(0, lambda: None)
    batches = training.train_batches.epoch(0)
    for _ in range(8):
        if not training.replays.prepare(batches, training.train_batches):  # the first ones set up the device
            training.train_step(*next(batches), log)
            continue
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.replay_step(log)
            training._guard.check()
            assert training.replays.prepare(batches, training.train_batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert training.replays.steps == 5
