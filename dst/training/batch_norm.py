"""Batch norm statistics of weights that were not trained: anew, by a pass over training batches."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from dst.data.loader import Loader
from dst.training.determinism import seed_torch
from dst.training.gradients import Passes
from dst.training.phase import Tick


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the modules that normalise by statistics of batches and keep averages of them."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def reestimate(model: nn.Module, passes: Passes, batches: Loader, epoch: int, tick: Tick) -> None:
    """Replace the running statistics by the means over all batches of an epoch, at the present weights, in place.

    The batches pass as they do in training: in the run's precision, and in the parts whose gradients are accumulated.
    Each of several processes sees its own samples, and all get the means over all processes. ``tick`` is called once a
    batch; if it raises, the statistics are not those of anything, while all else is as it was.
    """
    processes = passes.processes

    def inputs() -> Iterator[Tensor]:
        for i, (images, _) in enumerate(batches.epoch(epoch, shard=processes.shard)):
            tick()
            seed_torch(passes.settings.seed, "batch_norm", epoch, i, *processes.seed_path)
            yield from processes.parts(images, passes.settings.accumulate)

    with _restored(model):
        update_bn(inputs(), _Passing(model, passes))
    found = [statistic for module in batch_norms(model) for statistic in (module.running_mean, module.running_var)]
    processes.average([statistic for statistic in found if statistic is not None])


class _Passing(nn.Module):
    """A network that passes over batches as the run does."""

    def __init__(self, model: nn.Module, passes: Passes) -> None:
        super().__init__()
        self.model, self._passes = model, passes

    def forward(self, inputs: Tensor) -> Tensor:
        return self._passes.logits(self.model, inputs)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore, however the block ends, what a re-estimation changes beside the statistics."""
    momenta = [(module, module.momentum) for module in batch_norms(model)]
    was_training = model.training
    try:
        yield
    finally:
        for module, momentum in momenta:
            module.momentum = momentum
        model.train(was_training)
