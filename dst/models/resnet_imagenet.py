"""Residual networks for ImageNet, from torchvision."""

from torch import nn

from dst.models.shape import Shape, require_side


def resnet50(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ResNet-50 (v1.5: stride on the 3x3 convolutions) without pretrained weights.

    25 557 032 parameters for ImageNet (3x224x224, 1000 classes). The last maps are averaged, whatever their size. For
    other than three channels the first convolution is replaced, and initialised in the same way.
    """
    require_side("resnet50", shape, smallest=1)
    # Imported here because it takes a second, which only this model needs to spend.
    from torchvision.models import resnet50 as torchvision_resnet50

    model: nn.Module = torchvision_resnet50(weights=None, num_classes=classes)
    if shape[0] != 3:
        model.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
