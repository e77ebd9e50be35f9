"""Residual networks for small images: a 3x3 stem without pooling (He et al., 2016).

Two families, in the form of the sparse-training codes: four wide stages (ITOP, GraNet; PyTorch's initialisation, a
classifier without bias) and three thin ones (GraNet, Random Pruning; Kaiming's, with bias). The last maps are averaged,
whatever their size. Names without a suffix mean these networks up to 34 layers, and ``resnet_imagenet`` from 50 on.
With ``stem_pool`` the wide ones are those that the code of shuffled blocks trains on larger images.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dst.models.shape import Shape, require_side
from dst.models.stages import stages
from dst.options import checked

StemPool = Annotated[
    bool,
    "halve the maps of the stem by max-pooling (3x3, stride 2), which leaves later layers a quarter of their FLOPs",
]


@checked
def resnet18(shape: Shape, classes: int, *, stem_pool: StemPool = False) -> nn.Module:
    """Build the CIFAR ResNet-18: four stages of two basic blocks, 64 to 512 wide, and a classifier without bias.

    11 173 952 parameters for CIFAR-10 (3x32x32, 10 classes).
    """
    return _resnet("resnet18", shape, classes, stem_pool=stem_pool)


def resnet20(shape: Shape, classes: int) -> nn.Module:
    """Build the CIFAR ResNet-20: three stages of three basic blocks, 16 to 64 wide, and a classifier with bias.

    272 474 parameters for CIFAR-10 (3x32x32, 10 classes).
    """
    return _resnet("resnet20", shape, classes)


def resnet32(shape: Shape, classes: int) -> nn.Module:
    """Build the CIFAR ResNet-32: three stages of five basic blocks, 16 to 64 wide, and a classifier with bias.

    466 906 parameters for CIFAR-10 (3x32x32, 10 classes).
    """
    return _resnet("resnet32", shape, classes)


@checked
def resnet34(shape: Shape, classes: int, *, stem_pool: StemPool = False) -> nn.Module:
    """Build the CIFAR ResNet-34: stages of 3, 4, 6 and 3 basic blocks, 64 to 512 wide, a classifier without bias.

    21 282 112 parameters for CIFAR-10 (3x32x32, 10 classes).
    """
    return _resnet("resnet34", shape, classes, stem_pool=stem_pool)


@checked
def resnet50_cifar(shape: Shape, classes: int, *, stem_pool: StemPool = False) -> nn.Module:
    """Build the CIFAR ResNet-50: stages of 3, 4, 6 and 3 bottlenecks, 256 to 2048 wide, a classifier without bias.

    23 520 832 parameters for CIFAR-10 (3x32x32, 10 classes).
    """
    return _resnet("resnet50_cifar", shape, classes, stem_pool=stem_pool)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Takes maps ``(batch, inputs, height, width)`` and gives ``outputs`` channels; ``stride`` divides the size.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the block's maps."""
        hidden = torch.relu(self.bn1(self.conv1(maps)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(maps))


class Bottleneck(nn.Module):
    """A 3x3 convolution, which has the stride, between two 1x1 ones that narrow to a quarter and widen again.

    Takes and gives maps as ``BasicBlock``, with the same shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        narrow = outputs // 4
        self.conv1 = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the block's maps."""
        hidden = torch.relu(self.bn1(self.conv1(maps)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        return torch.relu(self.bn3(self.conv3(hidden)) + self.shortcut(maps))


@dataclass(frozen=True)
class _Plan:
    """A network: output channels of the stem; output channels and number of blocks of each stage."""

    stem: int
    stages: tuple[tuple[int, int], ...]
    block: Callable[[int, int, int], nn.Module] = BasicBlock
    thin: bool = False


_PLANS = {
    "resnet18": _Plan(64, ((64, 2), (128, 2), (256, 2), (512, 2))),
    "resnet20": _Plan(16, ((16, 3), (32, 3), (64, 3)), thin=True),
    "resnet32": _Plan(16, ((16, 5), (32, 5), (64, 5)), thin=True),
    "resnet34": _Plan(64, ((64, 3), (128, 4), (256, 6), (512, 3))),
    "resnet50_cifar": _Plan(64, ((256, 3), (512, 4), (1024, 6), (2048, 3)), Bottleneck),
}


def _resnet(name: str, shape: Shape, classes: int, *, stem_pool: bool = False) -> nn.Module:
    require_side(name, shape, smallest=1)
    plan = _PLANS[name]
    rows = stages(plan.block, plan.stem, plan.stages)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], plan.stem, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(plan.stem),
            relu=nn.ReLU(),
            **({"stem_pool": nn.MaxPool2d(3, stride=2, padding=1)} if stem_pool else {}),
            **{f"layer{number}": stage for number, stage in enumerate(rows, start=1)},
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(plan.stages[-1][0], classes, bias=plan.thin),
        )
    )
    if plan.thin:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # by fan-in, as the published code; biases stay PyTorch's
    return model


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
