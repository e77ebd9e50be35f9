"""One phase: the method's ordinary run."""

from dst.procedures.method import Length, Method
from dst.training.phase import Phase


def single(length: Length, method: Method) -> list[Phase]:
    """Train the method once, from the first step to the last."""
    return [Phase("train", length.steps, method.lr(length.steps), method.update(length.steps))]
