"""Loss and accuracy of a model, without leaving a trace in it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and accuracy (a fraction) over a data set."""

    loss: float
    accuracy: float


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor], Tensor] | None = None
) -> Evaluation:
    """Evaluate in eval mode with one host synchronisation at the end; every sample counts once.

    ``forward`` maps inputs to logits by the model, where that takes more than calling it.
    """
    forward = forward or model
    training = model.training
    model.eval()
    totals: list[Tensor] = []
    samples = 0
    for inputs, labels in batches:
        logits = forward(inputs).float()
        loss = F.cross_entropy(logits, labels, reduction="sum").double()
        totals.append(torch.stack([loss, (logits.argmax(1) == labels).sum().double()]))
        samples += len(labels)
    model.train(training)
    loss_sum, correct = torch.stack(totals).sum(0).tolist()
    return Evaluation(loss_sum / samples, correct / samples)
