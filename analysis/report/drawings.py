"""Figures as SVG within a page: small, with ids of their own, and readable on light and on dark paper."""

import re
from collections.abc import Iterable
from typing import Final

from markupsafe import Markup, escape

_OUTSIDE: Final = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL
)
_SPACE: Final = re.compile(r"\s*\n\s*")
_TAG: Final = re.compile("<[^>]*>")
_PLACE: Final = re.compile(r' (?:d|x|y)="[^"]*"')
_NUMBER: Final = re.compile(r"-?\d+\.\d+")
_COLOUR: Final = re.compile(r"#[0-9a-fA-F]{6}\b")
_ID: Final = re.compile(r'((?: id="|href="#|url\(#))([^")]+)')
_START: Final = re.compile(r'<svg\b[^>]*(viewBox="[\d.]+ [\d.]+ ([\d.]+) [\d.]+")[^>]*>')
_PAIR: Final = re.compile(r"var\(--c([0-9a-f]{6})-([0-9a-f]{6})\)")


def inline(light: str, dark: str, *, name: str, title: str, about: str) -> Markup:
    """Return one SVG element made of a figure's SVG file, drawn twice: for light and for dark paper.

    The two differ in colours only; each pair of colours becomes a variable (``colours``). ``name`` begins all ids, so
    that the figures of a page share none. ``title`` and ``about`` are read aloud.
    """
    light, dark = _tidy(light, name), _tidy(dark, name)
    found = _START.search(light)
    if found is None or _uncoloured(light) != _uncoloured(dark):
        raise ValueError(f"figure {name}: the light and the dark drawing differ in more than colours")
    start = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{found.group(1)} style="--width: {float(found.group(2)):.0f}pt" '
        f'role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(about)}</desc>'
    )
    return Markup(_START.sub(lambda _: start, _paired(light, dark), count=1))


def colours(drawings: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the variables of some drawings: (name, its value on light paper, its value on dark paper)."""
    pairs = sorted({pair for drawing in drawings for pair in _PAIR.findall(drawing)})
    return [(f"--c{light}-{dark}", f"#{light}", f"#{dark}") for light, dark in pairs]


def _tidy(svg: str, name: str) -> str:
    """Return an SVG file as an element: without head and comments, places rounded, ids in order of appearance."""
    names: dict[str, str] = {}

    def own(found: re.Match[str]) -> str:
        return found.group(1) + names.setdefault(found.group(2), f"{name}-{len(names)}")

    def tidy_tag(found: re.Match[str]) -> str:
        return _ID.sub(own, _PLACE.sub(lambda place: _NUMBER.sub(_rounded, place.group()), found.group()))

    return _TAG.sub(tidy_tag, _SPACE.sub("\n", _OUTSIDE.sub("", svg)).strip())


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def _uncoloured(svg: str) -> str:
    return _TAG.sub(lambda tag: _COLOUR.sub("", tag.group()), svg)


def _paired(light: str, dark: str) -> str:
    """Return the light drawing with each colour as a variable that also names the dark one."""
    others = (colour for tag in _TAG.findall(dark) for colour in _COLOUR.findall(tag))

    def pair(found: re.Match[str]) -> str:
        return f"var(--c{found.group()[1:].lower()}-{next(others)[1:].lower()})"

    return _TAG.sub(lambda tag: _COLOUR.sub(pair, tag.group()), light)
