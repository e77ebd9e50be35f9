"""AlexNet with batch normalisation and without pooling, as in SNIP (Lee et al., 2019) and ITOP.

The two forms differ in the width of the two hidden layers.
"""

from collections import OrderedDict
from collections.abc import Iterator

from torch import nn

from dst.models.shape import Shape, require_side

_SMALLEST = 7  # the 11x11 kernel with padding 2; the later convolutions take any map
_KERNELS = ((96, 11, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1))
"""Output channels, kernel and padding of the convolutions, all of stride 2."""


def alexnet_s(shape: Shape, classes: int) -> nn.Module:
    """Build the small AlexNet, with hidden layers of 1024; convolutions and linear layers have biases.

    5 077 066 parameters for CIFAR-10 (3x32x32, 10 classes). Raises ``ModelError`` for images below 7x7.
    """
    return _alexnet("alexnet_s", shape, classes, hidden=1024)


def alexnet_b(shape: Shape, classes: int) -> nn.Module:
    """Build the big AlexNet, with hidden layers of 2048; convolutions and linear layers have biases.

    8 501 322 parameters for CIFAR-10 (3x32x32, 10 classes). Raises ``ModelError`` for images below 7x7.
    """
    return _alexnet("alexnet_b", shape, classes, hidden=2048)


def _alexnet(name: str, shape: Shape, classes: int, *, hidden: int) -> nn.Module:
    require_side(name, shape, _SMALLEST)
    channels, height, width = shape
    flat = _KERNELS[-1][0] * _map_side(height) * _map_side(width)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*_features(channels)),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(*_hidden(flat, hidden), *_hidden(hidden, hidden), nn.Linear(hidden, classes)),
        )
    )


def _map_side(side: int) -> int:
    for _, kernel, padding in _KERNELS:
        side = (side + 2 * padding - kernel) // 2 + 1
    return side


def _features(channels: int) -> Iterator[nn.Module]:
    for outputs, kernel, padding in _KERNELS:
        yield nn.Conv2d(channels, outputs, kernel, stride=2, padding=padding)
        yield nn.BatchNorm2d(outputs)
        yield nn.ReLU()
        channels = outputs


def _hidden(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()
