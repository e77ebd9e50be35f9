"""Bring images to one size: stretch them, or scale and crop them around the centre."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dst.data.options import CenterCrop, Size
from dst.options import require

_IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class Resize:
    """Resize images to ``size`` x ``size`` pixels; ``size=None`` leaves them as they are.

    Without ``center_crop``, images are stretched. With it, the shorter side is scaled to round(size / center_crop) and
    the central square of ``size`` is kept: 224 and 0.875 are ImageNet's Resize(256), CenterCrop(224). ValueError if
    the numbers make no sense.
    """

    size: Size | None = None
    center_crop: CenterCrop | None = None

    def __post_init__(self) -> None:
        require(self)

    def __str__(self) -> str:
        """Return its part of a file name: nothing, ``-224`` or ``-224-crop0.875``."""
        size = "" if self.size is None else f"-{self.size}"
        return size if self.center_crop is None else f"{size}-crop{self.center_crop:g}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images (uint8 [N, C, H, W]) resized, each independently of the others."""
        if self.size is None:
            return images
        if self.center_crop is None:
            return resized(images, self.size, self.size)
        height, width = images.shape[2:]
        shorter = round(self.size / self.center_crop)
        longer = int(shorter * max(height, width) / min(height, width))  # rounded as torchvision does
        height, width = (shorter, longer) if height <= width else (longer, shorter)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        images = resized(images, height, width)
        return images[..., top : top + self.size, left : left + self.size].contiguous()


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Return the images (uint8 [N, C, H, W]) resized, bilinear with antialiasing and rounded once, at the end."""
    if tuple(images.shape[2:]) == (height, width):
        return images
    pieces = [  # piece by piece, since a whole set of floats may not fit into memory
        functional.interpolate(piece.float(), (height, width), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for piece in torch.split(images, _IMAGES_AT_ONCE)
    ]
    return torch.cat(pieces)
