"""VGG networks with batch normalisation, as in the CIFAR experiments of the sparse-training papers.

A network is a row of a table: blocks of convolutions, each block followed by 2x2 max-pooling, and a classifier.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from dst.models.shape import Shape, require_side


@dataclass(frozen=True)
class _Conv:
    """A convolution with padding 1, whatever its kernel."""

    width: int
    kernel: int = 3


@dataclass(frozen=True)
class _Plan:
    blocks: tuple[tuple[_Conv, ...], ...]
    hidden: tuple[int, ...]


_PLANS = {
    "vgg_c": _Plan(
        blocks=(
            (_Conv(64), _Conv(64)),
            (_Conv(128), _Conv(128)),
            # The 1x1 convolutions are padded like the others in the published code, so their maps grow by 2.
            (_Conv(256), _Conv(256), _Conv(256, kernel=1)),
            (_Conv(512), _Conv(512), _Conv(512, kernel=1)),
            (_Conv(512), _Conv(512), _Conv(512, kernel=1)),
        ),
        hidden=(512, 512),
    ),
}


def vgg_c(shape: Shape, classes: int) -> nn.Module:
    """Build VGG-C as ITOP trains it (Liu et al., 2021): 1x1 third convolutions with padding 1, hidden layers of 512.

    11 323 466 parameters for CIFAR-10 (3x32x32, 10 classes). Raises ``ModelError`` for images below 4x4.
    """
    return _vgg("vgg_c", shape, classes)


def _vgg(name: str, shape: Shape, classes: int) -> nn.Module:
    plan = _PLANS[name]
    require_side(name, shape, next(side for side in itertools.count(1) if _map_side(side, plan)))
    channels, height, width = shape
    flat = plan.blocks[-1][-1].width * _map_side(height, plan) * _map_side(width, plan)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*_features(channels, plan)),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(*_classifier(flat, classes, plan)),
        )
    )


def _map_side(side: int, plan: _Plan) -> int:
    """Return the side of the last map, 0 if the image is too small for one."""
    for block in plan.blocks:
        side = (side + sum(3 - conv.kernel for conv in block)) // 2 if side else 0
    return side


def _features(channels: int, plan: _Plan) -> Iterator[nn.Module]:
    for block in plan.blocks:
        for conv in block:
            yield nn.Conv2d(channels, conv.width, conv.kernel, padding=1)
            yield nn.BatchNorm2d(conv.width)
            yield nn.ReLU()
            channels = conv.width
        yield nn.MaxPool2d(2)


def _classifier(inputs: int, classes: int, plan: _Plan) -> Iterator[nn.Module]:
    for width in plan.hidden:
        yield nn.Linear(inputs, width)
        yield nn.ReLU()
        yield nn.BatchNorm1d(width)
        inputs = width
    yield nn.Linear(inputs, classes)
