"""Follow ``sparsity.density`` through one run, from the command line to the first masks.

``python -m tests.architecture.way DENSITY [overrides]`` runs ``dst.cli.main`` with a density that nothing else is,
until a function returns the masks that have it, and prints what was on its way. It knows no name of any function.
"""

import inspect
import json
import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from dst.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGE = f"{REPOSITORY / 'dst'}/"
_DEEPEST = 5
"""Attributes and items below which the density is not looked for: a command has cells, a cell a config."""


class Way:
    """A profile function that looks for a density in what functions of the package are given and return."""

    def __init__(self, density: str) -> None:
        self.text, self.number = density, float(density)
        self.converted: list[tuple[FrameType, str]] = []
        """Who made the number of the text: the frame that asked for it, and the function."""

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """Note where text becomes a number; when there are masks of this density, print the way, and end."""
        if event != "return" or not _is_ours(frame.f_code) or value is None:
            return
        if self._are_masks(value):
            self._print(frame, value)
            os._exit(0)
        asked_by = frame.f_back
        if asked_by is None or not _is_ours(asked_by.f_code) or not self._is_in(value, float):
            return
        if self._is_given(frame, str) and not self._is_given(frame, float):
            self.converted.append((asked_by, _name(frame.f_code)))

    def _are_masks(self, value: Any) -> bool:
        if not isinstance(value, list) or not value or any(str(getattr(v, "dtype", "")) != "torch.bool" for v in value):
            return False
        return sum(int(mask.sum()) for mask in value) == round(self.number * sum(mask.numel() for mask in value))

    def _print(self, last: FrameType, masks: Any) -> None:
        """Print the frames from the command line to the masks, and those of them that are given the density.

        Decorators, which stand between a function and who calls it, are left out.
        """
        frames: list[FrameType] = []
        frame: FrameType | None = last
        while frame is not None:
            if _is_ours(frame.f_code) and not (frames and _decorates(frame, frames[0].f_code)):
                frames.insert(0, frame)
            frame = frame.f_back
        given = [frame for frame in frames if self._is_given(frame, str) or self._is_given(frame, float)]
        found = {
            "calls": [_name(frame.f_code) for frame in frames],
            "given": [_name(frame.f_code) for frame in given],
            "converted": [[_name(asked_by.f_code), name] for asked_by, name in self.converted if asked_by in frames],
            "active": sum(int(mask.sum()) for mask in masks),
            "size": sum(mask.numel() for mask in masks),
        }
        print(json.dumps(found), file=sys.__stdout__, flush=True)

    def _is_given(self, frame: FrameType, kind: type) -> bool:
        """Say whether the density is in the arguments of a function, as text (``str``) or as a number (``float``)."""
        arguments = inspect.getargvalues(frame)
        names = [*arguments.args, *filter(None, (arguments.varargs, arguments.keywords))]
        return any(self._is_in(arguments.locals.get(name), kind) for name in names)

    def _is_in(self, value: Any, kind: type, depth: int = 0) -> bool:
        if isinstance(value, str):
            return kind is str and self.text in value
        if isinstance(value, float):
            return kind is float and value == self.number
        if depth == _DEEPEST:
            return False
        if isinstance(value, list | tuple):
            return any(self._is_in(item, kind, depth + 1) for item in value)
        if isinstance(value, dict):
            return any(self._is_in(item, kind, depth + 1) for item in value.values())
        if type(value).__module__.startswith("dst."):
            return any(self._is_in(item, kind, depth + 1) for item in getattr(value, "__dict__", {}).values())
        return False


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_PACKAGE) and not code.co_name.startswith("<")


def _decorates(frame: FrameType, called: CodeType) -> bool:
    """Say whether a function encloses the one that it calls, as the inner function of a decorator does."""
    enclosed = (frame.f_locals.get(name) for name in frame.f_code.co_freevars)
    return any(getattr(value, "__code__", None) is called for value in enclosed)


def _name(code: CodeType) -> str:
    return f"dst/{code.co_filename.removeprefix(_PACKAGE)}:{code.co_qualname}"


if __name__ == "__main__":
    way = Way(sys.argv[1])
    arguments = [f"sparsity.density={way.text}", *sys.argv[2:]]
    sys.setprofile(way)
    sys.exit(f"no masks of density {way.text}, exit code {main(arguments, conf=REPOSITORY / 'conf')}")
