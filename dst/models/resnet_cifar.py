"""Residual networks for small images: a 3x3 stem without pooling (He et al., 2016, in the form of the ITOP code)."""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dst.models.shape import Shape, require_side


def resnet18(shape: Shape, classes: int) -> nn.Module:
    """Build the CIFAR ResNet-18: four stages of two basic blocks, 64 to 512 wide, and a classifier without bias.

    11 173 952 parameters for CIFAR-10 (3x32x32, 10 classes). The last maps are averaged, whatever their size.
    """
    return _resnet("resnet18", shape, classes, stages=((64, 2), (128, 2), (256, 2), (512, 2)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Takes maps ``(batch, inputs, height, width)`` and gives ``width`` channels; ``stride`` divides the size.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the block's maps."""
        hidden = torch.relu(self.bn1(self.conv1(maps)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(maps))


def _resnet(name: str, shape: Shape, classes: int, *, stages: tuple[tuple[int, int], ...]) -> nn.Module:
    """Build a network of stages, each a width and a number of blocks; all but the first halve the maps."""
    require_side(name, shape, smallest=1)
    stem, last = stages[0][0], stages[-1][0]
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], stem, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(stem),
            relu=nn.ReLU(),
            **dict(_stages(stages)),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(last, classes, bias=False),
        )
    )


def _stages(stages: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, nn.Module]]:
    inputs = stages[0][0]
    for number, (width, blocks) in enumerate(stages, start=1):
        strides = [1 if number == 1 else 2] + [1] * (blocks - 1)
        widths = [inputs] + [width] * (blocks - 1)
        yield f"layer{number}", nn.Sequential(*(BasicBlock(i, width, s) for i, s in zip(widths, strides, strict=True)))
        inputs = width
