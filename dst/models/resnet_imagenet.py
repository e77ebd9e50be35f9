"""Residual networks for ImageNet, from torchvision (He et al., 2016; v1.5: stride on the 3x3 convolutions).

Built without pretrained weights. The last maps are averaged, whatever their size. For other than three channels the
first convolution is replaced, and initialised in the same way.

Names without a suffix mean these networks from 50 layers on, and ``resnet_cifar`` up to 34.
"""

from torch import nn

from dst.models.shape import Shape, require_side


def resnet18_imagenet(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ResNet-18: 11 689 512 parameters for ImageNet (3x224x224, 1000 classes)."""
    return _resnet("resnet18_imagenet", shape, classes)


def resnet34_imagenet(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ResNet-34: 21 797 672 parameters for ImageNet (3x224x224, 1000 classes)."""
    return _resnet("resnet34_imagenet", shape, classes)


def resnet50(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ResNet-50: 25 557 032 parameters for ImageNet (3x224x224, 1000 classes)."""
    return _resnet("resnet50", shape, classes)


def resnet101(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ResNet-101: 44 549 160 parameters for ImageNet (3x224x224, 1000 classes)."""
    return _resnet("resnet101", shape, classes)


def resnet152(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ResNet-152: 60 192 808 parameters for ImageNet (3x224x224, 1000 classes)."""
    return _resnet("resnet152", shape, classes)


def _resnet(name: str, shape: Shape, classes: int) -> nn.Module:
    require_side(name, shape, smallest=1)
    # Imported here since it takes a second, and only these models need it.
    import torchvision.models

    build = getattr(torchvision.models, name.removesuffix("_imagenet"))
    model: nn.Module = build(weights=None, num_classes=classes)
    if shape[0] != 3:
        model.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
