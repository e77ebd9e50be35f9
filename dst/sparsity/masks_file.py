"""The masks of another run, in a file."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dst.files import read_verified


def read_masks(path: str, digest: str | None, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the mask of each layer, on the CPU, from a checkpoint or from what ``Sparsifier.state_dict`` returned.

    ``shapes``: those of the layers by name. Raises ValueError if the file holds no masks, masks of other layers, or has
    another ``digest`` (SHA-256 in hex), if one is given.
    """
    state = torch.load(io.BytesIO(read_verified(Path(path), digest)), map_location="cpu", weights_only=True)
    masks: dict[str, Tensor] | None = state.get("sparsifier", state).get("masks")
    if masks is None:
        raise ValueError(f"there are no masks in {path}: give the checkpoint of a run")
    theirs = {name: tuple(mask.shape) for name, mask in masks.items()}
    here = {name: tuple(shape) for name, shape in shapes.items()}
    if theirs != here:
        told = ", ".join(
            f"{name} is {_size(theirs.get(name))} there and {_size(here.get(name))} here"
            for name in sorted({name for name, _ in theirs.items() ^ here.items()})
        )
        raise ValueError(
            f"the masks in {path} do not fit this model and scope: {told}. Take masks of the same model and scope"
        )
    return masks


def _size(shape: Sequence[int] | None) -> str:
    return "x".join(map(str, shape)) if shape is not None else "missing"
