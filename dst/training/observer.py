"""Who receives what the loop measures and saves."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dst.sparsity.topology import LayerReport
from dst.sparsity.weights.packing import Decision
from dst.training.phase import Network


class Observer(Protocol):
    """Receives what the loop measures and saves; the loop never waits for an answer."""

    def on_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Take named values of a step."""
        ...

    def on_layers(self, step: int, layers: list[LayerReport]) -> None:
        """Take the layers' counts after a topology update."""
        ...

    def on_compute(self, step: int, decisions: Sequence[Decision]) -> None:
        """Take how layers are multiplied from now on, and what their times were."""
        ...

    def on_capture(self, step: int, line: str) -> None:
        """Take a line about work that was captured, to be replayed, or about what stands in the way of it."""
        ...

    def on_step(self, step: int) -> None:
        """Note that a step is done, or that work between two steps goes on."""
        ...

    def on_network(self, network: Network, state: Mapping[str, Any]) -> None:
        """Take a network that was made on the way. ``state``: its ``model`` and its ``sparsifier``, as saved."""
        ...

    def on_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save the state durably."""
        ...


class NoObserver:
    """An observer that does nothing, for training alone."""

    def on_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def on_layers(self, step: int, layers: list[LayerReport]) -> None:
        """Do nothing."""

    def on_compute(self, step: int, decisions: Sequence[Decision]) -> None:
        """Do nothing."""

    def on_capture(self, step: int, line: str) -> None:
        """Do nothing."""

    def on_step(self, step: int) -> None:
        """Do nothing."""

    def on_network(self, network: Network, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def on_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Do nothing."""
