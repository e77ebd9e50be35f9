"""The gradient of the mean loss at the weights of a network, on whole batches."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from operator import is_not
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from dst.metrics.flops import Account
from dst.training.determinism import seed_torch
from dst.training.distributed import Processes
from dst.training.precision import Precision
from dst.training.settings import Settings


class Batch(NamedTuple):
    """What one step looks at.

    ``inputs`` and ``labels`` are this process's share of the ``samples``. ``step``: the step that takes it, which names
    the random numbers of dropout: every pass over the batch draws the same.
    """

    inputs: Tensor
    labels: Tensor
    samples: int
    step: int


class Judgement(NamedTuple):
    """The mean loss over all samples of a batch and the number of right answers, on the device."""

    loss: Tensor
    right: Tensor


@dataclass(frozen=True)
class Passes:
    """How a network passes over batches: in which layout, precision and parts, and in which process."""

    settings: Settings
    precision: Precision
    processes: Processes

    def logits(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return logits as float32 or finer, computed in the run's layout and precision."""
        if self.settings.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            logits: Tensor = network(inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Gradients:
    """Gradients of the mean loss at the weights of one network: the model that is trained, or a snapshot of it."""

    def __init__(self, network: nn.Module, passes: Passes) -> None:
        self.network = network
        self.passes = passes
        self._replica = passes.processes.replica(network)
        self._parameters = list(network.parameters())
        self._accumulators = self._now()
        self._buffers = list(network.buffers())

    def of(
        self, batch: Batch, account: Account, active: Mapping[str, int], *, dense_gradient: bool = False
    ) -> Judgement:
        """Replace the gradients of the network by those of a batch, in the parts that are accumulated.

        Gradients, loss and answers are those of all samples, of which this process may have only a share. With several
        processes all use the running statistics of the main one afterwards. Books the passes, through a network with
        these ``active`` weights, and what the ``dense_gradient`` costs where the method reads it.
        """
        self.seed(batch.step)
        judged = self.compute(batch)
        self.book(account, active, batch.samples, dense_gradient=dense_gradient)
        return judged

    def seed(self, step: int) -> None:
        """Let the random numbers of dropout in the coming pass be those of a step."""
        seed_torch(self.passes.settings.seed, "step", step, *self.passes.processes.seed_path)

    def book(self, account: Account, active: Mapping[str, int], samples: int, *, dense_gradient: bool = False) -> None:
        """Book what ``compute`` costs."""
        account.forward(active, samples)
        account.backward(active, samples)
        if dense_gradient:
            account.dense_gradient(active, samples)

    def compute(self, batch: Batch) -> Judgement:
        """Do what the device does for ``of``: nothing here reads from it, or depends on numbers of the host."""
        settings, precision, processes = self.passes.settings, self.passes.precision, self.passes.processes
        self._refresh()
        for parameter in self._parameters:  # the module's own method would look for its parameters at every step
            parameter.grad = None
        losses, right = [], []
        parts = self._parts(batch)
        for i, (inputs, labels) in enumerate(parts):
            with nullcontext() if i == len(parts) - 1 else processes.local(self._replica):
                logits = self.passes.logits(self._replica, inputs)
                mean = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                loss = mean * (len(labels) / batch.samples)
                precision.scaled(processes.to_sum(loss)).backward()  # type: ignore[no-untyped-call,unused-ignore]
            losses.append(loss.detach())
            right.append((logits.detach().argmax(1) == labels).sum())
        processes.sum_gradients(self._parameters)
        processes.share(self._buffers)  # all use the running statistics of the main process, which saves them
        return Judgement(*processes.total(torch.stack(losses).sum(), torch.stack(right).sum()))

    def _refresh(self) -> None:
        """Wrap the network anew if autograd does not know its parameters any more: packed layers have new values."""
        if self._replica is not self.network and any(map(is_not, self._now(), self._accumulators)):
            self._replica, self._accumulators = self.passes.processes.replica(self.network), self._now()

    def _now(self) -> list[Any]:
        """Return what accumulates the gradient of each parameter, where a replica waits for that.

        Layers are packed on a CPU only: a GPU need not wait for the host to look.
        """
        if self._replica is self.network or not self._parameters[0].is_cpu:
            return []
        return [get_gradient_edge(parameter).node for parameter in self._parameters if parameter.requires_grad]

    @torch.no_grad()
    def loss(self, batch: Batch, account: Account, active: Mapping[str, int]) -> Tensor:
        """Return the mean loss over all samples of a batch, computed as ``of`` does, without gradients."""
        self.seed(batch.step)
        losses = [
            F.cross_entropy(
                self.passes.logits(self.network, inputs), labels, label_smoothing=self.passes.settings.label_smoothing
            )
            * (len(labels) / batch.samples)
            for inputs, labels in self._parts(batch)
        ]
        account.forward(active, batch.samples)
        return self.passes.processes.total(torch.stack(losses).sum())[0]

    def _parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return the parts of a batch that are accumulated."""
        settings, processes = self.passes.settings, self.passes.processes
        parts = [processes.parts(tensor, settings.accumulate) for tensor in (batch.inputs, batch.labels)]
        return list(zip(*parts, strict=True))
