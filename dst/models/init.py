"""How first weights are drawn: each sets those of all convolutions and linear layers, and the scale of biases.

Biases have ``bias_scale`` times the deviation of their own layer's weights, in the form of these. In published code
(Gadhikar et al., 2023) the deviation of biases is a product over all layers so far, which is 1e-28 at the end of a
ResNet-18; in the first layer the two agree.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dst.models.initialise import Layer
from dst.models.shape import ModelError


def default(layers: Sequence[Layer], bias_scale: float | None) -> None:
    """Leave weights as the model's builder drew them; a scale makes biases normal."""
    if bias_scale is not None:
        for layer in layers:
            if layer.bias is not None:
                layer.bias.normal_(0, 1).mul_(bias_scale * layer.deviation)


def fan_in(layers: Sequence[Layer], bias_scale: float | None) -> None:
    """Draw convolutions from Kaiming's normal distribution by fan-in, as in ITOP's ImageNet command (``-c fanin``).

    Linear layers stay as the builder drew them. Raises ModelError without convolutions.
    """
    convolutions = [layer for layer in layers if layer.weight.dim() > 2]
    if not convolutions:
        raise ModelError("init=fan_in would be ignored: this model has no convolutions. Use init=kaiming_normal")
    for layer in convolutions:
        _kaiming_normal(layer)
    default(layers, bias_scale)


def kaiming_normal(layers: Sequence[Layer], bias_scale: float | None) -> None:
    """Draw all weights from Kaiming's normal distribution by fan-in, N(0, 2 / fan-in) (He et al., 2015)."""
    for layer in layers:
        _kaiming_normal(layer)
    default(layers, bias_scale)


def signed_constant(layers: Sequence[Layer], bias_scale: float | None) -> None:
    """Give all weights the size sqrt(2 / fan-in) and a sign at random (Ramanujan et al., 2020); to biases likewise."""
    for layer in layers:
        _signed(layer.weight, layer.deviation)
        if layer.bias is not None and bias_scale is not None:
            _signed(layer.bias, bias_scale * layer.deviation)


def looks_linear(layers: Sequence[Layer], bias_scale: float | None) -> None:
    """Let units come in pairs of opposite sign, as in networks that are linear at first (Balduzzi et al., 2017).

    So is a chain of layers of even widths with ReLU; maxima and sums of other branches break it.

    With an orthogonal W of half as many outputs and inputs, a layer's weights are ``[[W, -W], [-W, W]]``, those of the
    first layer ``[[W], [-W]]``; an odd row or column is cut off, which leaves one unit without its opposite. ReLU makes
    of ``(z, -z)`` what the next layer's ``(W, -W)`` adds up to ``W z``. Biases are paired likewise, and have to be for
    the network to be affine: set a scale, 0 for a linear one.

    A convolution's W is orthogonal as a matrix of the outputs against inputs and kernel positions together, as in the
    published code of ER. Orthogonal at the kernel's centre and zero elsewhere would be isometric too, but a random mask
    would leave next to nothing of it.
    """
    for number, layer in enumerate(layers):
        outputs, inputs, *kernel = layer.weight.shape
        half = layer.weight.new_empty(math.ceil(outputs / 2), inputs if number == 0 else math.ceil(inputs / 2), *kernel)
        rows = _paired(nn.init.orthogonal_(half), 0, outputs)
        layer.weight.copy_(rows if number == 0 else _paired(rows, 1, inputs))
        if layer.bias is not None and bias_scale is not None:
            drawn = layer.bias.new_empty(math.ceil(outputs / 2)).normal_(0, 1).mul_(bias_scale * layer.deviation)
            layer.bias.copy_(_paired(drawn, 0, outputs))


def _kaiming_normal(layer: Layer) -> None:
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")


def _signed(values: Tensor, size: float) -> None:
    values.bernoulli_(0.5).mul_(2 * size).sub_(size)


def _paired(values: Tensor, dim: int, length: int) -> Tensor:
    """Return values with their opposites behind them, cut off at a length."""
    return torch.cat([values, -values], dim).narrow(dim, 0, length)
