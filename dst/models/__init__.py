"""The networks of the published experiments: plain torch modules that know nothing of sparsity.

Each is a function ``name(shape, classes, *, options) -> nn.Module``; ``shape`` is ``(channels, height, width)`` of the
data. A model starts from torch's global random numbers, which the caller seeds. Its names in configs are in
``dst.registry``.
"""

from dst.models.shape import ModelError, Shape

__all__ = ["ModelError", "Shape"]
