"""Figures as SVG within a page: with ids of their own, and readable on light and on dark paper."""

import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import Final

from markupsafe import Markup, escape

from analysis.report.safe import visible

_STYLE: Final = re.compile(r"<style.*?</style>", re.DOTALL)
_SPACE: Final = re.compile(r"\s*\n\s*")
_TAG: Final = re.compile("<[^>]*>")
_COLOUR: Final = re.compile(r"#[0-9a-fA-F]{6}\b")
_ID: Final = re.compile(r'((?: id="|href="#|url\(#))([^")]+)')
_START: Final = re.compile(r'<svg\b[^>]*(viewBox="[\d.]+ [\d.]+ ([\d.]+) [\d.]+")[^>]*>')
_PAIR: Final = re.compile(r"var\(--c([0-9a-f]{6})-([0-9a-f]{6})\)")


def inline(light: str, dark: str, *, name: str, title: str, about: str) -> Markup:
    """Return one SVG element made of a figure that was drawn twice: for light and for dark paper.

    The two differ in colours only; each pair of colours becomes a variable (``colours``). ``name`` begins all ids, so
    that the figures of a page share none. ``title`` and ``about`` are read aloud.
    """
    drawn = _paired(_tidy(light, name), _tidy(dark, name))
    found = _START.search(drawn)
    if found is None:
        raise ValueError(f"{name} is no SVG element with a viewBox")
    start = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{found.group(1)} style="--width: {float(found.group(2)):.0f}pt" '
        f'role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(about)}</desc>'
    )
    return Markup(_START.sub(lambda _: start, drawn, count=1))


def colours(drawings: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the variables of some drawings: (name, its value on light paper, its value on dark paper)."""
    pairs = sorted({pair for drawing in drawings for pair in _PAIR.findall(drawing)})
    return [(f"--c{light}-{dark}", f"#{light}", f"#{dark}") for light, dark in pairs]


def _tidy(svg: str, name: str) -> str:
    """Return an SVG element with ids in order of appearance, and without a style that would hold for all the page."""
    names: dict[str, str] = {}

    def own(found: re.Match[str]) -> str:
        return found.group(1) + names.setdefault(found.group(2), f"{name}-{len(names)}")

    svg = visible(_SPACE.sub("\n", _STYLE.sub("", svg)).strip())
    return _TAG.sub(lambda tag: _ID.sub(own, tag.group()), svg)


def _paired(light: str, dark: str) -> str:
    """Return the light drawing with each colour as a variable that also names the dark one; ValueError if others."""
    pairs = zip_longest(_pieces(light), _pieces(dark), fillvalue="")
    return "".join(one if one == other else _paired_tag(one, other) for one, other in pairs)


def _pieces(svg: str) -> list[str]:
    """Return the tags of an SVG and the texts between them."""
    return re.split("(<[^>]*>)", svg)


def _paired_tag(light: str, dark: str) -> str:
    light, dark = _with_fill(light, dark), _with_fill(dark, light)
    if not light.startswith("<") or _COLOUR.sub("", light) != _COLOUR.sub("", dark):
        raise ValueError(f"the light and the dark drawing differ in more than colours: {light} and {dark}")
    others = iter(_COLOUR.findall(dark))
    return _COLOUR.sub(lambda found: f"var(--c{found.group()[1:].lower()}-{next(others)[1:].lower()})", light)


def _with_fill(tag: str, other: str) -> str:
    """Return a tag with its black fill, which matplotlib leaves out, if the other one has a fill."""
    is_black = "fill: " in other and "fill: " not in tag
    return tag.replace('style="', 'style="fill: #000000; ', 1) if is_black else tag
