"""The shape of the data that a model is built for."""

from typing import TypeAlias

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of a sample."""


class ModelError(ValueError):
    """A model that cannot be built with these options, or for this data."""


def require_side(model: str, shape: Shape, smallest: int) -> None:
    """Raise ``ModelError`` if the height or width of the data is below the smallest side that the model takes."""
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ModelError(
            f"model {model} needs images of at least {smallest}x{smallest}, these are {height}x{width} "
            f"({channels} channel{'s' * (channels != 1)}): set size={smallest} or more, or choose another model"
        )


def require_patches(model: str, shape: Shape, patch: int) -> None:
    """Raise ``ModelError`` unless the data are squares that can be cut into patches of ``patch`` x ``patch``."""
    channels, height, width = shape
    if height != width or height < patch or height % patch:
        side = max(1, -(-max(height, width) // patch)) * patch
        raise ModelError(
            f"model {model} cuts square images into patches of {patch}x{patch}, these are {height}x{width} "
            f"({channels} channel{'s' * (channels != 1)}): set size={side} or another multiple of {patch}, or choose "
            "another model"
        )
