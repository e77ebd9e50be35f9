"""All figures by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pandas as pd

from analysis.figures import accuracy, curves, layers, networks
from analysis.figures.panels import Drawn
from analysis.figures.style import Style


@dataclass(frozen=True)
class Drawing:
    """How one figure is made. ``caption`` says what it shows, ``needs`` what runs must have to be in it."""

    name: str
    title: str
    caption: str
    needs: str
    draw: Callable[[pd.DataFrame, Style], Drawn | None]

    def __call__(self, frame: pd.DataFrame, theme: str = "light", venue: str | None = None) -> Drawn | None:
        """Return the figure of a catalog of runs, or None if no run has what it needs."""
        style = Style(theme, venue)
        with style.context():
            figure = self.draw(frame, style)
        if figure is not None:
            figure.name = self.name
        return figure


_SPREAD: Final = "Bands and bars: one standard deviation over seeds."

FIGURES: Final = {
    drawing.name: drawing
    for drawing in (
        Drawing(
            "accuracy_density", "Accuracy over density",
            f"Test accuracy over the share of weights that are left; a dense network is a level. {_SPREAD}",
            "runs that are done, at a density below 1", accuracy.over_density,
        ),
        Drawing(
            "accuracy_flops", "Accuracy over FLOPs",
            f"Test accuracy over the FLOPs of training, as a ratio to dense training. {_SPREAD}",
            "runs that are done", accuracy.over_flops,
        ),
        Drawing(
            "curves", "Learning curves",
            "Validation accuracy while training, mean over seeds. Bands: one standard deviation over seeds. The axis "
            "begins at the lowest mean after the first fifth of training.",
            "runs with a validation split", curves.learning,
        ),
        Drawing(
            "rs", "Explored weights (Rs)",
            "The share of maskable weights that have been active at any time so far, mean over seeds. Bands: one "
            "standard deviation over seeds.",
            "runs that log Rs of sparse networks", curves.rs,
        ),
        Drawing(
            "layer_density", "Density of layers",
            f"The density of each layer at the end, mean over seeds. {_SPREAD}",
            "sparse runs with a layers.jsonl", layers.density,
        ),
        Drawing(
            "layer_exchange", "Dropped and grown by layer",
            "Weights of each layer that were dropped, and grown, in all of training, per active weight. "
            f"{_SPREAD}",
            "runs that drop or grow weights", layers.exchange,
        ),
        Drawing(
            "extended_training", "Extended training",
            f"Test accuracy over the length of training. {_SPREAD}",
            "runs that are done, of a method at two or more values of schedule.multiplier", accuracy.over_multiplier,
        ),
        Drawing(
            "networks", "Networks on the way",
            "Validation accuracy of the networks that a procedure makes, over the step at which it makes them. "
            f"{_SPREAD}",
            "runs of a procedure that makes networks on the way, with a validation split", networks.on_the_way,
        ),
    )
}  # fmt: skip
"""Name -> the figure."""
