"""All tensors of a network, parameters and buffers, taken and put back while an optimizer and hooks keep theirs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dst.sparsity import Sparsifier


def weight_names(model: nn.Module, sparsifier: Sparsifier) -> list[str]:
    """Return the name of each sparse layer's weight among the model's tensors."""
    names = {id(tensor): name for name, tensor in _tensors(model).items()}
    return [names[id(parameter)] for parameter in sparsifier.weights.parameters]


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every tensor of a model's state by name, each once, under the first of its names."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the tensors of a model in place; ``tensors``: by name, as ``copied`` returns them."""
    for name, tensor in _tensors(model).items():
        tensor.copy_(tensors[name])


@contextmanager
def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model hold other tensors for a while; however that ends, it has its own again."""
    own = copied(model)
    try:
        put(model, tensors)
        yield
    finally:
        put(model, own)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
