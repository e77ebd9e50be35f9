"""Vision transformers (Dosovitskiy et al., 2021), from torchvision's parts.

An image is cut into square patches, each a token, beside a class token from which the classifier reads; positions are
learned; norms come before attention and perceptron. Attention holds the projection of its queries, keys and values as
one weight, a layer named ``<attention>.in_proj`` (``dst.network.places``). No dropout, no pretrained weights. For other
than three channels the convolution that embeds the patches is replaced, and initialised in the same way.
"""

import math

from torch import nn

from dst.models.shape import Shape, require_patches


def vit_tiny(shape: Shape, classes: int) -> nn.Module:
    """Build a transformer for small images: patches of 4, 6 blocks, 192 wide, 3 heads, perceptrons of 768.

    2 693 578 parameters for CIFAR-10 (3x32x32, 10 classes). The classifier starts from a normal distribution (0.02,
    truncated, as in DeiT) instead of torchvision's zeros, through which neither gradient nor score would pass at first.
    """
    model = _vit("vit_tiny", shape, classes, patch_size=4, num_layers=6, num_heads=3, hidden_dim=192, mlp_dim=768)
    nn.init.trunc_normal_(model.get_parameter("heads.head.weight"), std=0.02)
    return model


def vit_b_16(shape: Shape, classes: int) -> nn.Module:
    """Build torchvision's ViT-B/16: 86 567 656 parameters for ImageNet (3x224x224, 1000 classes).

    Its classifier starts from zeros, as published. Until it has trained, no other weight has a gradient: criteria that
    rank the weights of a new network (snip, grasp, synflow) find nothing to rank by, and say so.
    """
    return _vit("vit_b_16", shape, classes, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)


def _vit(name: str, shape: Shape, classes: int, *, patch_size: int, hidden_dim: int, **sizes: int) -> nn.Module:
    require_patches(name, shape, patch_size)
    channels, side, _ = shape
    # Imported here since it takes a second, and few models need it.
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(side, patch_size, hidden_dim=hidden_dim, num_classes=classes, **sizes)
    if channels != 3:
        stem = nn.Conv2d(channels, hidden_dim, patch_size, stride=patch_size)
        nn.init.trunc_normal_(stem.weight, std=math.sqrt(1 / (channels * patch_size**2)))
        nn.init.zeros_(stem.bias)  # type: ignore[arg-type]
        model.conv_proj = stem
    return model
