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
    """A convolution; its padding is 1 for every kernel."""

    width: int
    kernel: int = 3


@dataclass(frozen=True)
class _Plan:
    """Blocks of convolutions, each followed by max-pooling, and the widths of the hidden layers.

    ``averaged``: the form of GraSP (Wang et al., 2020) and GraNet. The last maps are averaged instead of pooled, the
    convolutions have no biases, and weights start from Kaiming's normal distribution.
    """

    blocks: tuple[tuple[_Conv, ...], ...]
    hidden: tuple[int, ...] = ()
    averaged: bool = False


def _blocks(*depths: int) -> tuple[tuple[_Conv, ...], ...]:
    """Return blocks of 3x3 convolutions in VGG's widths; ``depths``: their numbers of convolutions."""
    return tuple((_Conv(width),) * depth for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True))


_PLANS = {
    "vgg_c": _Plan(
        blocks=(
            (_Conv(64), _Conv(64)),
            (_Conv(128), _Conv(128)),
            # As in the published code, the 1x1 convolutions are padded like the others, so their maps grow by 2.
            (_Conv(256), _Conv(256), _Conv(256, kernel=1)),
            (_Conv(512), _Conv(512), _Conv(512, kernel=1)),
            (_Conv(512), _Conv(512), _Conv(512, kernel=1)),
        ),
        hidden=(512, 512),
    ),
    "vgg_d": _Plan(_blocks(2, 2, 3, 3, 3), hidden=(512, 512)),
    "vgg_like": _Plan(_blocks(2, 2, 3, 3, 3), hidden=(512,)),
    "vgg16": _Plan(_blocks(2, 2, 3, 3, 3), averaged=True),
    "vgg19": _Plan(_blocks(2, 2, 4, 4, 4), averaged=True),
}


def vgg_c(shape: Shape, classes: int) -> nn.Module:
    """Build VGG-C as ITOP trains it (Liu et al., 2021): 1x1 third convolutions with padding 1, hidden layers of 512.

    11 323 466 parameters for CIFAR-10 (3x32x32, 10 classes). Raises ``ModelError`` for images below 4x4.
    """
    return _vgg("vgg_c", shape, classes)


def vgg_d(shape: Shape, classes: int) -> nn.Module:
    """Build VGG-D as in SNIP (Lee et al., 2019) and ITOP: thirteen 3x3 convolutions, two hidden layers of 512.

    15 255 626 parameters for CIFAR-10 (3x32x32, 10 classes). Raises ``ModelError`` for images below 32x32.
    """
    return _vgg("vgg_d", shape, classes)


def vgg_like(shape: Shape, classes: int) -> nn.Module:
    """Build VGG-like as in SNIP (Lee et al., 2019) and ITOP: VGG-D with one hidden layer of 512.

    14 991 946 parameters for CIFAR-10 (3x32x32, 10 classes). Raises ``ModelError`` for images below 32x32.
    """
    return _vgg("vgg_like", shape, classes)


def vgg16(shape: Shape, classes: int) -> nn.Module:
    """Build VGG-16 as in Random Pruning and ER (Liu et al., 2022; Gadhikar et al., 2023), without hidden layers.

    14 724 042 parameters for CIFAR-10 (3x32x32, 10 classes). The last maps are averaged, whatever their size. Raises
    ``ModelError`` for images below 16x16.
    """
    return _vgg("vgg16", shape, classes)


def vgg19(shape: Shape, classes: int) -> nn.Module:
    """Build VGG-19 as in GraSP and GraNet (Wang et al., 2020; Liu et al., 2021), without hidden layers.

    20 035 018 parameters for CIFAR-10 (3x32x32, 10 classes). The last maps are averaged, whatever their size. Raises
    ``ModelError`` for images below 16x16.
    """
    return _vgg("vgg19", shape, classes)


def _vgg(name: str, shape: Shape, classes: int) -> nn.Module:
    plan = _PLANS[name]
    require_side(name, shape, next(side for side in itertools.count(1) if _map_side(side, plan)))
    channels, height, width = shape
    flat = plan.blocks[-1][-1].width * _map_side(height, plan) * _map_side(width, plan)
    model = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*_features(channels, plan)),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(*_classifier(flat, classes, plan)),
        )
    )
    if plan.averaged:
        _initialise(model)
    return model


def _map_side(side: int, plan: _Plan) -> int:
    """Return the side of the flattened maps, 0 if the image is too small for one."""
    for block in plan.blocks[:-1] if plan.averaged else plan.blocks:
        side = (side + sum(3 - conv.kernel for conv in block)) // 2 if side else 0
    return min(side, 1) if plan.averaged else side


def _features(channels: int, plan: _Plan) -> Iterator[nn.Module]:
    last = len(plan.blocks) - 1
    for number, block in enumerate(plan.blocks):
        for conv in block:
            yield nn.Conv2d(channels, conv.width, conv.kernel, padding=1, bias=not plan.averaged)
            yield nn.BatchNorm2d(conv.width)
            yield nn.ReLU()
            channels = conv.width
        # On the 2x2 maps of CIFAR the average is the AvgPool2d(2) of the published code.
        yield nn.AdaptiveAvgPool2d(1) if plan.averaged and number == last else nn.MaxPool2d(2)


def _classifier(inputs: int, classes: int, plan: _Plan) -> Iterator[nn.Module]:
    for width in plan.hidden:
        yield nn.Linear(inputs, width)
        yield nn.ReLU()
        yield nn.BatchNorm1d(width)
        inputs = width
    yield nn.Linear(inputs, classes)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
