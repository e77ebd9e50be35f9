"""Learned masks that become sparser level by level."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dst.options import Range, checked, refuse
from dst.procedures.method import Length, Method
from dst.procedures.options import annealed, annealing_epochs, annealing_start_problems, last_level_problems
from dst.sparsity.marks import marked
from dst.training.phase import Action, Phase, Report, Tick

if TYPE_CHECKING:
    from dst.sparsity import Sparsifier
    from dst.training.loop import Training
    from dst.training.observer import Observer


@marked("anneals")
@checked
def anneal(
    length: Length,
    method: Method,
    *,
    start: Annotated[
        float, Range(0, 1, "(]"), "the density before the first level, which is less dense by a level's factor"
    ] = 0.6,
    levels: Annotated[int, Range(1), "levels of falling density, the last of which is at that of the end"] = 5,
    level_epochs: Annotated[
        int | None, Range(1), "epochs of each level but the last, which has what is left; null: as many in all"
    ] = None,
) -> list[Phase]:
    """Let learned masks become sparser by the same factor from level to level, and train on at each.

    Annealing (Gadhikar et al. 2023, "Why Random Pruning Is All We Need to Start Sparse"). Phases: ``level 1``, ``level
    2``, .... What is trained goes on, with the optimizer's state; the rate of each level is that of a whole training of
    its steps. No level is denser than the masks that active weights are chosen from. OptionError for levels that cannot
    be, ValueError if masks are not learned at a density.
    """
    if method.density is None:
        raise ValueError("annealing leads learned masks to their density, and there is none: train in a single phase")
    refuse(annealing_start_problems(start, method.density))
    whole = annealing_epochs(length.epochs, levels=levels, level_epochs=level_epochs) * length.steps_per_epoch
    refuse(last_level_problems(length.steps, whole, levels))
    steps = [whole] * (levels - 1) + [length.steps - whole * (levels - 1)]
    course = _Course(start, method.density, levels)
    return [
        Phase(
            f"level {level}",
            steps[level - 1],
            method.lr(steps[level - 1]),
            None,
            begin=_ToLevel(course, level),
            end=Report(f"level {level}"),
        )
        for level in range(1, levels + 1)
    ]


@dataclass(frozen=True)
class _Course:
    """How the density falls."""

    start: float
    target: float
    levels: int

    def density(self, level: int, sparsifier: "Sparsifier") -> float:
        """Return the density of a level (from 1), within the first masks of a network."""
        most = sparsifier.edge_density
        if most is None:
            raise RuntimeError("masks are not learned, so that there is nothing to anneal")
        return annealed(self.start, self.target, self.levels, most)[level - 1]


@dataclass(frozen=True)
class _ToLevel(Action):
    """Go over to the density of a level."""

    course: _Course
    level: int

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        tick()
        run.take_density(observer, self.course.density(self.level, run.sparsifier))

    def leaves(self, active: Mapping[str, int], sparsifier: "Sparsifier") -> Mapping[str, int]:
        """Return the weights that are active in the level."""
        return sparsifier.counts_at(self.course.density(self.level, sparsifier))
