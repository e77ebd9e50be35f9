"""When the weights of a layer were born, kept only of those that it matters of."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Births:
    """The steps of birth (int32) of some weights of a layer; all others were born at step 0, or it does not matter.

    ``size``: how many weights the layer has. ``places``: int64, which of them are looked at, if not all.
    """

    def __init__(self, size: int, device: torch.device, places: Tensor | None = None) -> None:
        self.size, self.device, self.places = size, device, places
        self.forget()

    def forget(self) -> None:
        """Let all weights be born at step 0."""
        self.positions = torch.zeros(0, dtype=torch.int64, device=self.device)
        """Which weights have a birth, in the order in which they are looked at."""
        self.births = torch.zeros(0, dtype=torch.int32, device=self.device)
        """When each of them was born."""

    def remember(self, births: Tensor) -> None:
        """Take the births of all weights, flat; 0 where there was none."""
        held = births if self.places is None else births[self.places]
        self.positions = held.nonzero().view(-1)
        self.births = held[self.positions]

    def dense(self) -> Tensor:
        """Return the births of all weights, flat; 0 where there was none."""
        births = torch.zeros(self.size, dtype=torch.int32, device=self.device)
        positions = self.positions if self.places is None else self.places[self.positions]
        return births.index_copy_(0, positions, self.births)

    def held(self) -> Tensor:
        """Return the births of the weights that are looked at, in their order; 0 where there was none."""
        size = self.size if self.places is None else len(self.places)
        births = torch.zeros(size, dtype=torch.int32, device=self.device)
        return births.index_copy_(0, self.positions, self.births)

    def change(self, mask: Tensor, new: Tensor | None, now: int, forgotten: int) -> None:
        """Let ``new`` weights be born ``now``; forget those that left, were born by ``forgotten``, or after ``now``."""
        if new is None and not len(self.positions):
            return
        births = self.dense()
        if new is not None:
            births.masked_fill_(new.reshape(-1), now)
        births.masked_fill_(~mask.reshape(-1) | (births <= forgotten) | (births > now), 0)
        self.remember(births)

    def of(self, mask: Tensor) -> Tensor:
        """Return the births of the weights that a mask has, in their order."""
        return self.dense().view(mask.shape)[mask]

    def restore(self, state: Mapping[str, Tensor], name: str, mask: Tensor) -> None:
        """Take what ``of`` returned for this mask, by the layer's ``name``; none where it has no entry. ValueError."""
        born = state.get(name)
        if born is None:
            return self.forget()
        if len(born) != int(mask.sum()):
            raise ValueError(f"layer {name}: {len(born)} ages are stored for {int(mask.sum())} weights")
        dense = torch.zeros_like(mask, dtype=torch.int32).masked_scatter_(mask, born.to(self.device))
        return self.remember(dense.reshape(-1))
