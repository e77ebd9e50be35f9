"""The masks of another run, in a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dst.files import read_verified
from dst.network.stored import differing, load, shapes_of, tensors_in


def read_masks(path: str, digest: str | None, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the boolean mask of each layer, on the CPU, from a checkpoint or ``Sparsifier.state_dict`` in a file.

    ``shapes``: those of the layers by name. Raises ValueError, saying what was found, if the file holds no masks, masks
    of other layers, or has another ``digest`` (SHA-256 in hex), if one is given; OSError if it cannot be read.
    """
    state = load(read_verified(Path(path), digest), path)
    masks = masks_in(state, path)
    if misfit := differing(shapes_of(masks), shapes):
        raise ValueError(
            f"the masks in {path} do not fit this model and scope: {misfit}. Take masks of the same model and scope"
        )
    return masks


def masks_in(state: Mapping[str, Any], path: object) -> dict[str, Tensor]:
    """Return the masks in a checkpoint, or in what ``Sparsifier.state_dict`` returned, as boolean tensors by layer.

    ValueError, saying what was found, if there are none, if they are no masks, or if they leave no weight at all.
    """
    inner = state.get("sparsifier")
    masks = tensors_in(inner if isinstance(inner, Mapping) else state, "masks", path)
    found = {name: _boolean(name, mask, path) for name, mask in masks.items()}
    if found and not any(mask.any() for mask in found.values()):
        raise ValueError(f"the masks in {path} are all zero: they leave no weight in any layer, so nothing would train")
    return found


def _boolean(name: str, mask: Tensor, path: object) -> Tensor:
    if mask.layout != torch.strided or mask.is_complex() or mask.is_quantized:
        raise ValueError(f"the mask of layer {name} in {path} is {mask.layout} of {mask.dtype}, and no dense 0 and 1")
    boolean = mask.bool()
    if not torch.equal(boolean.to(mask.dtype), mask):
        value = mask[boolean.to(mask.dtype) != mask].flatten()[0].item()
        raise ValueError(
            f"the mask of layer {name} in {path} is no mask: it has {mask.dtype} values other than 0 and 1, such as "
            f"{value:g}. Give masks (mask.bool()), not scores or weights"
        )
    return boolean
