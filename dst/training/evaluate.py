"""Loss and accuracy of a model, which stays unchanged."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from dst.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and accuracy (a fraction) over a data set."""

    loss: float
    accuracy: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    forward: Callable[[Tensor], Tensor] | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Evaluate in eval mode with one host synchronisation at the end; every sample counts once.

    ``forward`` maps inputs to logits, if that takes more than calling the model. Each of several ``processes`` passes
    its own samples, perhaps none, and gets the figures over all.
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
    ours = torch.stack(totals).sum(0) if totals else torch.zeros(2, dtype=torch.float64, device=_device(model))
    sums = processes.total(*ours, ours.new_tensor(samples))
    loss_sum, correct, count = torch.stack(sums).tolist()
    return Evaluation(loss_sum / count, correct / count)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
