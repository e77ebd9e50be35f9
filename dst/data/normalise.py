"""From uint8 pixels to normalised float32, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dst.data.dataset import DataError, Split


class Normalise:
    """``(x / 255 - mean) / std`` on ``device``; ``mean`` and ``std``: a number a channel, of pixels in [0, 1].

    ``DataError`` if they do not fit ``channels``.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int, device: torch.device) -> None:
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise DataError(
                    f"{key}={list(values)} has {len(values)} numbers, but the images have {channels} channels: give "
                    "one number a channel"
                )
        if not all(value > 0 for value in std):
            raise DataError(
                f"std={list(std)}: must be positive; where it was computed, a channel is constant: give mean=[...] and "
                "std=[...]"
            )
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in (mean, std)
        )

    @property
    def tensors(self) -> list[Tensor]:
        """What is subtracted, and what is divided by."""
        return [self._mean, self._std]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images (uint8 [B, C, H, W], of any strides) as contiguous float32."""
        # Two operations would do, but these equal (x / 255 - mean) / std to the last bit.
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self._mean).div_(self._std)


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, of pixels scaled to [0, 1].

    From integer histograms: exact, and the same for any number of threads.
    """
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in split.images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        centre = float((share * values).sum())
        mean.append(centre)
        std.append(float((share * (values - centre) ** 2).sum().sqrt()))
    return mean, std
