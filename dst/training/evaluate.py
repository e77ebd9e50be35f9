"""Loss and accuracy of a model, which stays unchanged."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from dst.training.distributed import ALONE, Processes

Batches = Iterable[tuple[Tensor, Tensor]]
Forward = Callable[[Tensor], Tensor]
"""From inputs to logits."""

Sums = Callable[[Batches, Forward], Iterator[tuple[Tensor, int]]]
"""Yields of each batch the sums of losses and of right answers, float64 [2], and the number of samples."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and accuracy (a fraction) over a data set."""

    loss: float
    accuracy: float


def sums_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sums of losses and of right answers over a batch, float64 [2]."""
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="sum").double()
    return torch.stack([loss, (logits.argmax(1) == labels).sum().double()])


def eager_sums(batches: Batches, forward: Forward) -> Iterator[tuple[Tensor, int]]:
    """Pass the batches one by one."""
    for inputs, labels in batches:
        yield sums_of(forward(inputs), labels), len(labels)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    forward: Forward | None = None,
    processes: Processes = ALONE,
    sums: Sums = eager_sums,
) -> Evaluation:
    """Evaluate in eval mode with one host synchronisation at the end; every sample counts once.

    ``forward``: if that takes more than calling the model; ``sums``: if batches pass in another way. Each of several
    ``processes`` passes its own samples, perhaps none, and gets the figures over all.
    """
    training = model.training
    model.eval()
    found = list(sums(batches, forward or model))
    model.train(training)
    totals, samples = [total for total, _ in found], sum(number for _, number in found)
    ours = torch.stack(totals).sum(0) if totals else torch.zeros(2, dtype=torch.float64, device=_device(model))
    loss_sum, correct, count = torch.stack(processes.total(*ours, ours.new_tensor(samples))).tolist()
    return Evaluation(loss_sum / count, correct / count)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
