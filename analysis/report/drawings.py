"""Figures as SVG within a page: small, with ids of their own, and in the colours of light and of dark paper."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from markupsafe import Markup, escape

from analysis.figures import THEMES
from analysis.names import COLOURS
from analysis.report.safe import visible

_STYLE_ELEMENT: Final = re.compile(r"<style.*?</style>", re.DOTALL)
_SPACE: Final = re.compile(r"\s*\n\s*")
_TAG: Final = re.compile("<[^>]*>")
_PLACES: Final = re.compile(r' (?:d|x|y)="[^"]*"')
_NUMBER: Final = re.compile(r"-?\d+\.\d+")
_LINE_TO: Final = re.compile(r"(?<=[\d ])\nL ")
_NO_TURN: Final = re.compile(r' transform="rotate\(-?0 [^"]*"')
_STYLE: Final = re.compile(r' style="([^"]*)"')
_COLOUR: Final = re.compile(r"#[0-9a-fA-F]{6}\b")
_ID: Final = re.compile(r'((?: id="|href="#|url\(#))([^")]+)')
_START: Final = re.compile(r'<svg\b[^>]*(viewBox="[\d.]+ [\d.]+ ([\d.]+) [\d.]+")[^>]*>')

_BLACK: Final = "fill: #000000; "
"""What matplotlib leaves out where it fills in black, which is also the colour of a method."""


def _dark() -> Mapping[str, str]:
    """Return the colours of figures on light paper -> those that stand for them on dark paper."""
    methods = zip(COLOURS["light"], COLOURS["dark"], strict=True)
    light, dark = THEMES["light"], THEMES["dark"]
    rest = ((getattr(light, field.name), getattr(dark, field.name)) for field in fields(light))
    return {one.lower(): other.lower() for one, other in (*methods, *rest)}


class Styles:
    """The styles of the figures of a page, each written once, as a class for light and for dark paper."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._dark = _dark()

    def name(self, style: str) -> str:
        """Return the class of a style of a light figure."""
        return self._names.setdefault(style, f"f{len(self._names)}")

    @property
    def light(self) -> Markup:
        """The rules for light paper."""
        return Markup("\n".join(f".{name} {{ {style} }}" for style, name in self._names.items()))

    @property
    def dark(self) -> Markup:
        """The rules for dark paper, where they differ."""
        rules = ((name, style, self.on_dark(style)) for style, name in self._names.items())
        return Markup("\n".join(f".{name} {{ {dark} }}" for name, style, dark in rules if dark != style))

    def on_dark(self, style: str) -> str:
        """Return a style with each colour as dark paper needs it."""
        return _COLOUR.sub(lambda found: self._dark[found.group().lower()], style)


def inline(svg: str, styles: Styles, *, name: str, title: str, about: str) -> Markup:
    """Return a light figure as an SVG element whose colours follow the reader's choice, by the classes in ``styles``.

    ``name`` begins all ids, so that the figures of a page share none. ``title`` and ``about`` are read aloud.
    """
    svg = visible(_SPACE.sub("\n", _STYLE_ELEMENT.sub("", svg)).strip())
    found = _START.search(svg)
    if found is None:
        raise ValueError(f"{name} is no SVG element with a viewBox")
    start = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{found.group(1)} style="--width: {float(found.group(2)):.0f}pt" '
        f'role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(about)}</desc>'
    )
    names: dict[str, str] = {}
    rest = _TAG.sub(lambda tag: _small(tag.group(), name, names, styles), svg[found.end() :])
    return Markup(start + rest)


def _small(tag: str, figure: str, names: dict[str, str], styles: Styles) -> str:
    """Return a tag with its style as a class, short numbers, and its ids as those of the figure."""

    def own(found: re.Match[str]) -> str:
        return found.group(1) + names.setdefault(found.group(2), f"{figure}-{len(names)}")

    style = _STYLE.search(tag)
    if style:
        tag = tag.replace(style.group(), f' class="{styles.name(with_fill(tag, style.group(1)))}"')
    tag = _PLACES.sub(lambda place: _LINE_TO.sub(" ", _NUMBER.sub(_rounded, place.group())), tag)
    return _ID.sub(own, _NO_TURN.sub("", tag))


def with_fill(tag: str, style: str) -> str:
    """Return the style of a tag with its black fill. A shape with an id is filled where it is used."""
    is_shape = tag.startswith(("<path", "<use")) and " id=" not in tag
    return _BLACK + style if is_shape and "fill: " not in style else style


def _rounded(number: re.Match[str]) -> str:
    """Return a place in a figure to a tenth of a point, or, in a small shape such as a marker, to a hundredth."""
    value = float(number.group())
    return f"{value:.{1 if abs(value) >= 10 else 2}f}".rstrip("0").rstrip(".")
