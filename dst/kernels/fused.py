"""Networks that compute batch norm, with ReLU and what is added, and dropout by kernels: converted in place.

The classes of modules change, and nothing else: names, parameters, buffers and their order stay. What a kernel cannot
do (evaluation, other number formats, GPUs) is computed by torch, as before.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dst.kernels.build import load
from dst.kernels.norm import batch_norm, dropout


@dataclass(frozen=True)
class Fused:
    """How many batch norms and dropouts of a network are fused; of the norms, those with ReLU, and with an addition."""

    norms: int = 0
    rectified: int = 0
    added: int = 0
    dropouts: int = 0

    def __bool__(self) -> bool:
        return self.norms + self.dropouts > 0

    def __str__(self) -> str:
        return (
            f"batch norms: {self.norms}, of which {self.rectified} with the ReLU that follows and {self.added} with an "
            f"addition before it; dropouts: {self.dropouts}"
        )


def fuse(model: nn.Module, folder: Path) -> Fused:
    """Let kernels, built in ``folder``, compute what they can of a network, in place; return what that is.

    A ReLU, and an addition before it, are found in the graph of the ``forward`` of the module that calls the norm. One
    that cannot be traced stays as it is: its norms are fused by themselves.
    """
    norms = list(_converted(model, _NORMS, folder))
    dropouts = list(_converted(model, {nn.Dropout: FusedDropout}, folder))
    followed = [found for module in _callers(model) for found in _join(module)]
    return Fused(len(norms), len(followed), sum(followed), len(dropouts))


# -- modules -----------------------------------------------------------------------------------------------------------


class _FusedNorm(_BatchNorm):
    """Batch norm that may add something to its outcome, and rectify it. ``kernels``: the folder that they are in."""

    kernels: Path

    def forward(self, input: Tensor, added: Tensor | None = None, rectifies: bool = False) -> Tensor:
        """Return ``norm(input)``, plus what is added, rectified if so asked."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call,unused-ignore]
        if not self._fits(input, added):
            y = super().forward(input)
            y = y if added is None else y + added
            return torch.relu(y) if rectifies else y
        y, mean, variance = batch_norm(
            load(self.kernels), input, self.weight, self.bias, self.eps, rectifies=rectifies, added=added
        )
        if self.training and self.track_running_stats:
            self._track(mean, variance, input.numel() // self.num_features)
        return y

    def _fits(self, x: Tensor, added: Tensor | None) -> bool:
        """Say whether a kernel does what torch does, and torch would not refuse."""
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        alike = added is None or (added.shape == x.shape and _is_taken(added))
        usual = x.dim() in (2, 4) and x.shape[1] == self.num_features and x.numel() > self.num_features
        return by_batch and alike and usual and _is_taken(x) and _is_taken(self.weight) and _is_taken(self.bias)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Take the statistics of a batch into the running ones, as torch does."""
        share = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = 1.0 / float(self.num_batches_tracked)
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.mul_(1 - share).add_(mean, alpha=share)
            self.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))


class FusedBatchNorm1d(_FusedNorm, nn.BatchNorm1d):
    """Batch norm of vectors."""


class FusedBatchNorm2d(_FusedNorm, nn.BatchNorm2d):
    """Batch norm of maps."""


class FusedDropout(nn.Dropout):
    """Dropout by a hash of a number's index and of a seed, drawn of torch's generator at each pass."""

    kernels: Path

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with each number dropped with probability ``p``, in training."""
        if not (self.training and 0 < self.p < 1 and _is_taken(input)):
            return super().forward(input)
        seed = torch.empty((), dtype=torch.int64, device="cpu").random_(2**32)
        return dropout(load(self.kernels), input, self.p, int(seed))


_NORMS: Final[dict[type, type]] = {nn.BatchNorm1d: FusedBatchNorm1d, nn.BatchNorm2d: FusedBatchNorm2d}


def _converted(model: nn.Module, classes: dict[type, type], folder: Path) -> Iterator[nn.Module]:
    """Give modules of these classes, and of no other ones derived of them, those of kernels; yield them."""
    for module in model.modules():
        is_idle = getattr(module, "p", None) == 0 or getattr(module, "weight", module) is None
        if type(module) in classes and not is_idle:
            module.__class__ = classes[type(module)]
            module.kernels = folder  # type: ignore[assignment]
            yield module


def _is_taken(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


# -- what follows a norm -----------------------------------------------------------------------------------------------


def _callers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that may call a norm."""
    for module in list(model.modules()):
        inside = (other for other in module.modules() if other is not module)
        if any(isinstance(other, _FusedNorm) for other in inside):
            yield module


class _Tracer(fx.Tracer):
    """Traces the forward pass of one module, and none of those that it calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return true: calls stay calls."""
        return True


def _join(module: nn.Module) -> list[bool]:
    """Let the norms that a module calls do the ReLU after them; return for each whether it does an addition too."""
    done: list[bool] = []
    if (graph := _graph(module)) is None:
        return done
    for relu in list(graph.nodes):
        if (chain := _chain(module, relu)) is None:
            continue
        with graph.inserting_before(relu):
            joined = graph.call_module(str(chain.norm.target), (chain.norm.args[0], chain.added, True))
        relu.replace_all_uses_with(joined)
        for node in (relu, chain.addition, chain.norm):
            if node is not None:
                graph.erase_node(node)
        done.append(chain.addition is not None)
    if done:
        kind, forward = type(module), type(fx.GraphModule(module, graph)).forward
        module.__class__ = type(f"Fused{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})
    return done


def _graph(module: nn.Module) -> fx.Graph | None:
    """Return the graph of a module's forward pass; None if there is none, or not the same in evaluation."""
    was, graphs = module.training, []
    try:
        for module.training in (False, True):
            graphs.append(_Tracer().trace(module))
    except Exception:  # what anybody's code may raise where it meets no tensor
        return None
    finally:
        module.training = was
    return graphs[1] if str(graphs[0]) == str(graphs[1]) else None


@dataclass(frozen=True)
class _Chain:
    """A norm, and the addition after it, if any, that a ReLU follows: ``relu(norm(x) + added)``."""

    norm: fx.Node
    addition: fx.Node | None = None
    added: fx.Node | None = None


_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (torch.relu, torch.relu_, F.relu, F.relu_)


def _chain(module: nn.Module, node: fx.Node) -> _Chain | None:
    """Return what a node of a module's graph ends as its ReLU, where one call can do the same; None if nothing."""
    is_relu = isinstance(_called(module, node), nn.ReLU) or node.target in _RELUS
    value = node.args[0] if is_relu and node.args else None
    if not isinstance(value, fx.Node):
        return None
    chains = [_Chain(value)]
    if value.target in _ADDITIONS and len(operands := _operands(value)) == 2 and len(value.users) == 1:
        chains = [_Chain(operands[i], value, operands[1 - i]) for i in (0, 1)]
    for chain in chains:
        norm, operands = chain.norm, _operands(chain.norm)
        is_norm = isinstance(_called(module, norm), _FusedNorm) and len(operands) == len(norm.users) == 1
        # It will be called later, where the ReLU is: what it reads must be the same there.
        if is_norm and (len(operands[0].users) == 1 or norm.next is node):
            return chain
    return None


def _called(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the values that a node takes; none if it takes anything else."""
    found = [value for value in node.args if isinstance(value, fx.Node)]
    return found if len(found) == len(node.args) and not node.kwargs else []
