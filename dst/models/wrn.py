"""Wide residual networks for small images (Zagoruyko and Komodakis, 2016), as in the sparse-training codes.

``wrn_D_K`` is a 3x3 stem of 16 channels, three stages of (D - 4) / 6 pre-activation blocks, 16K, 32K and 64K wide,
and a classifier. ``dropout`` acts between the convolutions of a block. The last maps are averaged, whatever their size.
Convolutions start from N(0, 2 / (kernel height x kernel width x outputs)), the classifier's bias from zero.
"""

from collections import OrderedDict
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from dst.models.shape import Shape, require_side
from dst.models.stages import stages
from dst.options import Range, checked

Dropout = Annotated[
    float, Range(0, 1, "[)"), "the fraction of maps that is dropped between the convolutions of a block"
]


@checked
def wrn_16_8(shape: Shape, classes: int, *, dropout: Dropout = 0.3) -> nn.Module:
    """Build WRN-16-8: 10 961 370 parameters for CIFAR-10."""
    return _wrn("wrn_16_8", shape, classes, depth=16, widen=8, dropout=dropout)


@checked
def wrn_16_10(shape: Shape, classes: int, *, dropout: Dropout = 0.3) -> nn.Module:
    """Build WRN-16-10: 17 116 634 parameters for CIFAR-10."""
    return _wrn("wrn_16_10", shape, classes, depth=16, widen=10, dropout=dropout)


@checked
def wrn_22_2(shape: Shape, classes: int, *, dropout: Dropout = 0.3) -> nn.Module:
    """Build WRN-22-2: 1 079 642 parameters for CIFAR-10."""
    return _wrn("wrn_22_2", shape, classes, depth=22, widen=2, dropout=dropout)


@checked
def wrn_22_8(shape: Shape, classes: int, *, dropout: Dropout = 0.3) -> nn.Module:
    """Build WRN-22-8: 17 158 106 parameters for CIFAR-10."""
    return _wrn("wrn_22_8", shape, classes, depth=22, widen=8, dropout=dropout)


@checked
def wrn_28_2(shape: Shape, classes: int, *, dropout: Dropout = 0.3) -> nn.Module:
    """Build WRN-28-2: 1 467 610 parameters for CIFAR-10."""
    return _wrn("wrn_28_2", shape, classes, depth=28, widen=2, dropout=dropout)


@checked
def wrn_28_10(shape: Shape, classes: int, *, dropout: Dropout = 0.0) -> nn.Module:
    """Build WRN-28-10: 36 479 194 parameters for CIFAR-10."""
    return _wrn("wrn_28_10", shape, classes, depth=28, widen=10, dropout=dropout)


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU, beside a shortcut: the maps themselves where the shape stays.

    Where it changes, the shortcut is a 1x1 convolution of the activated maps. Takes ``(batch, inputs, height, width)``
    and gives ``outputs`` channels; ``stride`` divides the size.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the block's maps."""
        active = torch.relu(self.bn1(maps))
        hidden = self.dropout(torch.relu(self.bn2(self.conv1(active))))
        residual: Tensor = self.conv2(hidden)
        return residual + (maps if self.shortcut is None else self.shortcut(active))


def _wrn(name: str, shape: Shape, classes: int, *, depth: int, widen: int, dropout: float) -> nn.Module:
    require_side(name, shape, smallest=1)
    blocks = (depth - 4) // 6
    widths = [16 * widen, 32 * widen, 64 * widen]
    rows = stages(partial(PreActivationBlock, dropout=dropout), 16, [(width, blocks) for width in widths])
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 16, 3, padding=1, bias=False),
            **{f"block{number}": stage for number, stage in enumerate(rows, start=1)},
            bn1=nn.BatchNorm2d(widths[-1]),
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(widths[-1], classes),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model
