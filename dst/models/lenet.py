"""LeNet-5 as in Caffe, the convolutional network of the MNIST experiments."""

from collections import OrderedDict

from torch import nn

from dst.models.shape import Shape, require_side

_SMALLEST = 16  # 16 -> conv 12 -> pool 6 -> conv 2 -> pool 1


def lenet_5(shape: Shape, classes: int) -> nn.Module:
    """Build LeNet-5-Caffe: two unpadded 5x5 convolutions with 2x2 max-pooling, a hidden layer of 500, ReLU, biases.

    431 080 parameters for MNIST (1x28x28, 10 classes). Raises ``ModelError`` for images below 16x16.
    """
    require_side("lenet_5", shape, _SMALLEST)
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc3=nn.Linear(50 * _map_side(height) * _map_side(width), 500),
            relu3=nn.ReLU(),
            fc4=nn.Linear(500, classes),
        )
    )


def _map_side(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2
