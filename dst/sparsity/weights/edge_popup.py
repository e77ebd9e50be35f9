"""Weights that are never trained, and scores that are: edge-popup (Ramanujan et al. 2020)."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dst.seeding import derive_seed
from dst.sparsity.allocation import level_counts
from dst.sparsity.select import count_true, top_k
from dst.sparsity.weights.reparametrised import Edges, Reparametrization


class EdgePopup(Reparametrization):
    """In each layer the weights with the largest magnitudes of their scores are active; only scores are trained.

    ``density``: active / maskable weights, the same in all layers as far as their edges go: a layer with fewer edges
    keeps them all, and the others share the rest. Scores start at random: of constant ones the first masks would be
    those of the lowest indices, whole output units. ValueError for a density above that of the edges.
    """

    freezes_rest = True
    trains_inactive = True

    def __init__(self, edges: Edges, density: float) -> None:
        self._edges = edges
        self._layers = [
            _Popup(layer.weight, mask, derive_seed(edges.seed, "scores", i))
            for i, (layer, mask) in enumerate(zip(edges.layers, edges.masks, strict=True))
        ]
        self._density = density
        self.set_density(density)

    @property
    def parametrizations(self) -> Sequence[nn.Module]:
        """What computes the weights of each layer."""
        return self._layers

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The scores."""
        return [layer.scores for layer in self._layers]

    @property
    def density(self) -> float:
        """Active / maskable weights, as asked for."""
        return self._density

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """How many weights of each layer are chosen."""
        return tuple(self._counts)

    def counts_at(self, density: float) -> dict[str, int]:
        """Return how many weights of each layer would be active; ValueError if there are not as many edges."""
        layers = self._edges.layers
        counts = active_counts(density, [layer.size for layer in layers], count_true(self._edges.masks))
        return dict(zip([layer.name for layer in layers], counts, strict=True))

    def set_density(self, density: float) -> None:
        """Let another share of the weights be active; scores stay. ValueError if there are not as many edges."""
        self._counts = [*self.counts_at(density).values()]
        self._density = density
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose the active weights by the present scores, ties by lowest index."""
        for layer, mask, count in zip(self._layers, self._edges.masks, self._counts, strict=True):
            layer.active.copy_(top_k(layer.scores.abs(), count, mask))

    def active(self) -> list[Tensor]:
        """Return the boolean masks of the active weights."""
        return [layer.active.bool() for layer in self._layers]

    def state_dict(self) -> dict[str, Any]:
        """Return the density and the scores by layer."""
        scores = {
            layer.name: popup.scores.detach() for layer, popup in zip(self._edges.layers, self._layers, strict=True)
        }
        return {"density": self._density, "scores": scores}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for layer, popup in zip(self._edges.layers, self._layers, strict=True):
            popup.scores.copy_(state["scores"][layer.name])
        self.set_density(state["density"])


def active_counts(density: float, sizes: Sequence[int], edges: Sequence[int]) -> list[int]:
    """Return how many weights of each layer are active: ``round(density * weights)`` of all, at least one in each.

    ``sizes``: all weights of each layer; ``edges``: those that can be active. ValueError if there are not as many.
    """
    total, most = round(density * sum(sizes)), sum(edges)
    if total > most:
        raise ValueError(
            f"density={density}: would be {total:,} active weights, but the masks that they are chosen from have "
            f"{most:,} of {sum(sizes):,} (a density of {most / sum(sizes):.6g}): choose a smaller one, or denser masks"
        )
    if total < len(sizes):
        raise ValueError(
            f"density={density}: would be {total:,} active weights for {len(sizes)} layers, of which each keeps at "
            "least one: choose a larger one"
        )
    return level_counts(total, sizes, edges)


class _Popup(nn.Module):
    """The parametrisation of one layer: its weight where it is active."""

    active: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, seed: int) -> None:
        super().__init__()
        # Uniform in +-1 / sqrt(fan in), as the authors draw them: steps have to be able to change the order of scores.
        drawn = 2 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) - 1
        scores = torch.empty_like(weight.detach()).copy_(drawn / weight[0].numel() ** 0.5).mul_(mask)
        self.scores = nn.Parameter(scores)
        self.register_buffer("active", torch.zeros_like(scores))

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _StraightThrough.apply(weight, self.scores, self.active)
        return found


class _StraightThrough(torch.autograd.Function):
    """Forward: the active weights. Backward: the gradient of the scores, as if a weight were multiplied by ``|score|``.

    With the sign of the score, since the selection goes by magnitudes. Weights are zero off the edges, so that scores
    have no gradient there.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, active: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scores)
        return weight * active

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        weight, scores = ctx.saved_tensors
        return None, gradients[0] * weight * scores.sign(), None
