"""The shape of the data that a model is built for."""

from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]
"""Channels, height and width of an image, or the length of a vector."""


class ModelError(ValueError):
    """A model that cannot be built with these options, or for this data."""


def _require_image(model: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise ModelError(
            f"model {model} needs images (channels, height, width), these samples are vectors of "
            f"{', '.join(map(str, shape))} numbers: choose a perceptron, e.g. mlp, or other data"
        )


def require_side(model: str, shape: Shape, smallest: int) -> None:
    """Raise ``ModelError`` unless the data are images of at least the smallest side that the model takes."""
    _require_image(model, shape)
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ModelError(
            f"model {model} needs images of at least {smallest}x{smallest}, these are {height}x{width} "
            f"({channels} channel{'s' * (channels != 1)}): set size={smallest} or more, or choose another model"
        )


def require_patches(model: str, shape: Shape, patch: int) -> None:
    """Raise ``ModelError`` unless the data are squares that can be cut into patches of ``patch`` x ``patch``."""
    _require_image(model, shape)
    channels, height, width = shape
    if height != width or height < patch or height % patch:
        side = max(1, -(-max(height, width) // patch)) * patch
        raise ModelError(
            f"model {model} cuts square images into patches of {patch}x{patch}, these are {height}x{width} "
            f"({channels} channel{'s' * (channels != 1)}): set size={side} or another multiple of {patch}, or choose "
            "another model"
        )
