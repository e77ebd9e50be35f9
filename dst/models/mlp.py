"""Multi-layer perceptrons on flattened input."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

from torch import nn

from dst.models.shape import Shape, require_side
from dst.options import Each, Range, checked


@checked
def mlp(
    shape: Shape,
    classes: int,
    *,
    hidden: Annotated[Sequence[int], Each(Range(1, 1_000_000), least=1), "widths of the hidden layers"],
    batch_norm: Annotated[bool, "normalise what comes out of each hidden layer, after its ReLU"] = False,
) -> nn.Module:
    """Build a perceptron with ReLU and biases, and one hidden layer for each width in ``hidden``.

    Its linear layers are named ``fc1``, ``fc2``, ..., its batch norms ``bn1``, ``bn2``, ... These come after the ReLU,
    as in ER's code for tables (Gadhikar et al., 2023), and change no weight that is drawn.
    """
    return _mlp("mlp", shape, classes, hidden, batch_norm)


def lenet_300_100(shape: Shape, classes: int) -> nn.Module:
    """Build LeNet-300-100: the perceptron with hidden layers of 300 and 100 (LeCun et al., 1998).

    266 610 parameters for MNIST (1x28x28, 10 classes).
    """
    return _mlp("lenet_300_100", shape, classes, (300, 100))


def mlp_cifar10(shape: Shape, classes: int) -> nn.Module:
    """Build the perceptron that ITOP trains on CIFAR-10 (Liu et al., 2021), with hidden layers of 1024 and 512.

    3 676 682 parameters for CIFAR-10 (3x32x32, 10 classes).
    """
    return _mlp("mlp_cifar10", shape, classes, (1024, 512))


def _mlp(name: str, shape: Shape, classes: int, hidden: Sequence[int], batch_norm: bool = False) -> nn.Module:
    if len(shape) == 3:
        require_side(name, shape, smallest=1)
    widths = [math.prod(shape), *hidden]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"relu{number}"] = nn.ReLU()
        if batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(outputs)
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)
