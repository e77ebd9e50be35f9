"""The networks of the published experiments: plain torch modules that know nothing of sparsity.

Each is a function ``name(shape, classes, *, options) -> nn.Module``; ``shape`` is that of a
sample: ``(channels, height, width)`` of an image, ``(features,)`` of a vector. A model starts from torch's global
random numbers, which the caller seeds. Its names in configs are in ``dst.registry``.
"""

from dst.models.shape import ModelError, Shape

__all__ = ["ModelError", "Shape"]
