"""What single ranks do in the tests of several processes, each in a process of its own."""

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dst.config.schema import Config, Data, Distribution, Hardware, Init, Model, Schedule, Sparsity, complete
from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.data.shard import WHOLE
from dst.metrics.flops import Flops, Ledger, forward_flops
from dst.run.build import build
from dst.sparsity import Sparsifier, UpdatePlan
from dst.training.correction import NoCorrection, Situation, agent
from dst.training.determinism import seed_torch
from dst.training.distributed import ALONE, DesynchronisedError, Group, Processes, joined
from dst.training.gradients import Gradients, Passes
from dst.training.guard import DivergedError
from dst.training.loop import Training
from dst.training.observer import NoObserver
from dst.training.phase import Phase
from dst.training.precision import Precision
from dst.training.rank import own_rank
from dst.training.settings import Settings
from dst.training.stopping import StopFlag, StopRequestedError

SHAPE, CLASSES = (2, 6, 6), 5
SAMPLES, BATCH_SIZE, EPOCHS, EVERY = 194, 50, 3, 2  # batches of 50, 50, 50 and 44


OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "plain": partial(torch.optim.SGD, lr=0.05, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, fused=True),
}


@contextmanager
def processes(strict: bool = True) -> Iterator[Processes]:
    """Join the others, if there are any."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        yield ALONE
        return
    with joined(own_rank(), "cpu", strict=strict) as group:
        yield group


class Doubles(Batches):
    """Batches in float64."""

    def epoch(self, epoch, phase=0, start=0, shard=WHOLE):
        for images, labels in super().epoch(epoch, phase, start, shard):
            yield images.double(), labels


def network(batch_norm: bool) -> nn.Module:
    """Return a small network of convolutions and a linear layer."""
    norm, dropout = ([nn.BatchNorm2d(8)], [nn.Dropout(0.2)]) if batch_norm else ([], [])
    layers = [nn.Conv2d(2, 8, 3), *norm, nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), *dropout]
    return nn.Sequential(*layers, nn.Linear(48, CLASSES))


def training(
    group: Processes,
    *,
    batch_norm: bool = False,
    double: bool = False,
    accumulate: int = 1,
    precision: str = "fp32",
    momentum_growth: bool = False,
    select: str = "last",
    samples: int = SAMPLES,
    optimizer: str = "sgd",
    method: Mapping[str, Any] | None = None,
    correction: Mapping[str, Any] | None = None,
) -> Training:
    """Return a training on random images, with an update every second step.

    ``method``: other arguments of the Sparsifier, None for ``plan``: no updates; ``correction``: AGENT's options.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, *SHAPE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    make = partial(Doubles if double else Batches, Split(images, labels), batch_size=BATCH_SIZE, seed=1)
    seed_torch(0, "init")
    model = network(batch_norm)
    if double:
        model = model.double()
    made = OPTIMIZERS[optimizer](model.parameters(), weight_decay=5e-4)
    plan = UpdatePlan(
        every=EVERY, total_steps=EPOCHS * 4, order="after_step" if momentum_growth else "replaces_step", start=0.1
    )
    moves: dict[str, Any] = {"grow": "momentum", "redistribute": "momentum"} if momentum_growth else {}
    parts = {"density": 0.3, "plan": plan, "seed": 0, **moves, **(method or {})}
    sparsifier = Sparsifier(model, made, **parts)
    flops = Flops(forward_flops(model, SHAPE), {report.layer: report.size for report in sparsifier.layers})
    settings = Settings(
        seed=0,
        label_smoothing=0.1,
        accumulate=accumulate,
        channels_last=False,
        select=select,
        eval_every_epochs=1,
        log_every_steps=1,
        checkpoint_every_s=1e9,
        checkpoint_every_steps=None,
    )
    gradients = Gradients(model, Passes(settings, Precision(precision, "cpu"), group))
    ledger, batches = Ledger(flops), make(shuffle=True, augment=Augment(flip=True))
    situation = Situation(gradients, sparsifier, batches, ledger)
    return Training(
        gradients=gradients,
        optimizer=made,
        sparsifier=sparsifier,
        phases=[Phase("train", EPOCHS * 4, lambda step: 0.05, sparsifier.topology_update)],
        train_batches=batches,
        val_batches=make(),
        ledger=ledger,
        correction=NoCorrection() if correction is None else agent(situation, **correction),
    )


class Watcher(NoObserver):
    """It keeps metrics, the masks after every update, and a digest of the whole state after every step."""

    def __init__(self, run: Training) -> None:
        self.run = run
        self.metrics: list[dict[str, float]] = []
        self.masks: list[torch.Tensor] = []
        self.digests: list[str] = []
        self._seen = run.counters.step
        self.saved: list[int] = []

    def on_metrics(self, step, epoch, values):
        self.metrics.append({key: value for key, value in values.items() if not key.startswith("time/")})

    def on_layers(self, step, layers):
        self.masks.append(torch.cat([mask.flatten() for mask in self.run.sparsifier.topology.masks]))

    def on_step(self, step):
        if step > self._seen:  # else it is told that work between two steps goes on
            self._seen = step
            self.digests.append(digest(self.run))

    def on_checkpoint(self, step, state):
        self.saved.append(step)


def digest(run: Training) -> str:
    """Return a digest of weights, buffers, masks and the optimizer's state."""
    state = run.state_dict()
    parts = [state["model"], state["optimizer"]["state"], state["sparsifier"]]
    found = hashlib.sha256()
    for tensor in _tensors(parts):
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def train(options: dict[str, Any], strict: bool = True) -> dict[str, Any]:
    """Train to the end and return what is to be compared."""
    with processes(strict) as group:
        run = training(group, **options)
        watcher = Watcher(run)
        run.run(watcher, StopFlag())
        final = run.finish(run.val_batches)
        return {
            "weights": torch.cat([p.detach().flatten() for p in run.model.parameters()]),
            "masks": watcher.masks,
            "digests": watcher.digests,
            "metrics": watcher.metrics,
            "final": {key: value for key, value in final.items() if not key.startswith("time/")},
            "flops": run.ledger.total,
            "samples": run.counters.samples,
        }


def resume(options: dict[str, Any], steps: list[int]) -> tuple[list[str], list[list[str]]]:
    """Return digests of an undisturbed training and of those that continue from the main process's state at steps."""
    with processes() as group:
        run, states = training(group, **options), {}

        class Saver(Watcher):
            def on_step(self, step):
                super().on_step(step)
                states.setdefault(step, copy.deepcopy(self.run.state_dict()))  # before work between steps goes on

        undisturbed = Saver(run)
        run.run(undisturbed, StopFlag())
        continued = []
        for step in steps:
            again = training(group, **options)
            if group.is_main:
                group.tell(states[step])
            again.load_state_dict(states[step] if group.is_main else group.hear())
            watcher = Watcher(again)
            again.run(watcher, StopFlag())
            continued.append(watcher.digests)
        return undisturbed.digests, continued


def first_masks(cache: str) -> tuple[torch.Tensor, int]:
    """Return the masks that SNIP makes of the first training batch, and what they have cost."""
    with processes() as group:
        config = Config(
            data=Data(cache=cache),
            model=Model(name="mlp", hidden=[16]),
            sparsity=Sparsity(label="snip", density=0.1, distribution=Distribution("snip"), init=Init("saliency")),
            schedule=Schedule(batch_size=50),
            hardware=Hardware(processes=group.world),
        )
        config.sparsity.init.criterion = "snip"
        run = build(complete(config), group).training
        return torch.cat([mask.flatten() for mask in run.sparsifier.topology.masks]), run.ledger.total


def begin() -> tuple[str, str, list[int]]:
    """Begin with other weights and masks in each process, until they begin alike; return both digests and counts."""
    with processes() as group:
        run = training(group, batch_norm=True)
        for parameter in run.model.parameters():
            parameter.data.mul_(1 + group.rank)
        for buffer in run.model.buffers():
            buffer.add_(group.rank)
        run.sparsifier.topology.masks[1][:, : group.rank] ^= True
        before = digest(run)
        run.begin_alike()
        return before, digest(run), [report.active for report in run.sparsifier.layers]


def desynchronise(update: int) -> tuple[str, list[int], int]:
    """Flip a bit of a mask of the last process in an update; return the error, and the steps saved and taken."""
    with processes() as group:
        run = training(group)
        watcher, check = Watcher(run), group.check_masks

        def checked(topology, when):
            if run.sparsifier.updates == update and group.rank == group.world - 1:
                topology.masks[1].view(-1)[7] ^= True
            check(topology, when)

        group.check_masks = checked  # type: ignore[method-assign]
        try:
            run.run(watcher, StopFlag())
        except DesynchronisedError as error:
            return str(error), watcher.saved, run.counters.step
        return "", watcher.saved, run.counters.step


def stop(rank: int, step: int, delay: int) -> tuple[str, int, list[int]]:
    """Ask one process to stop after a step; return who is said to have asked, when it ended and what was saved."""
    with processes() as group:
        assert isinstance(group, Group)
        group._delay = delay
        run, flag = training(group), StopFlag()

        class Asker(Watcher):
            def on_step(self, now):
                if now == step and group.rank == rank:
                    flag.requested = "SIGUSR2"

        watcher = Asker(run)
        try:
            run.run(watcher, flag)
        except StopRequestedError as error:
            return error.signal_name, error.step, watcher.saved
        return "", run.counters.step, watcher.saved


def save_by_time(delay: int) -> list[int]:
    """Let it be time to save at every step, in the main process; return the steps saved."""
    with processes() as group:
        assert isinstance(group, Group)
        group._delay = delay
        run = training(group)
        object.__setattr__(run.settings, "checkpoint_every_s", 0.0 if group.is_main else 1e9)
        watcher = Watcher(run)
        run.run(watcher, StopFlag())
        return watcher.saved


def diverge(precision: str, step: int) -> tuple[str, str, str]:
    """Let the loss of the last process be no number at a step; return the error and the weights before and after."""
    with processes() as group:
        run = training(group, precision=precision)
        watcher, forward = Watcher(run), run.gradients.passes.logits
        before = ""

        def poisoned(model, inputs):
            nonlocal before
            logits = forward(model, inputs)
            if model.training and run.counters.step + 1 == step:
                before = _weights(run)
                if group.rank == group.world - 1:
                    return logits * float("nan")
            return logits

        object.__setattr__(run.gradients.passes, "logits", poisoned)
        try:
            run.run(watcher, StopFlag())
        except DivergedError as error:
            return str(error), before, _weights(run)
        return "", before, _weights(run)


def _weights(run: Training) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in run.model.parameters())).hexdigest()
