"""How each method is shown: one name, colour, marker and place, the same in every table and figure."""

import hashlib
from dataclasses import dataclass
from typing import Final

COLOURS: Final = {
    "light": (
        *("#000000", "#00588F", "#C78700", "#00936C", "#BA3A00", "#C25F9C", "#3C99D4", "#4A22C0"),
        *("#284F28", "#56697C", "#8A0F4F", "#7A5C38"),
    ),
    "dark": (
        *("#F2F2F2", "#4CA9E8", "#F5B83D", "#23BF90", "#F2692E", "#F0A0CF", "#B5E2FF", "#8E7BFF"),
        *("#A8F5A0", "#7A8FA3", "#D9508F", "#B59066"),
    ),
}
"""The palette of Okabe and Ito, safe for colour-blind readers, and four more, as each theme needs them: a line has a
contrast of 3 to the background at least. Equal places are one hue; black becomes white, and yellow, too pale on paper,
is a violet."""

MARKERS: Final = "osD^vPX"  # coprime in number with the colours: 84 methods before a pair repeats

NAMES: Final = {
    "dense": "Dense",
    "rigl_itop": "RigL-ITOP",
    "set_itop": "SET-ITOP",
    "rigl": "RigL",
    "set": "SET",
    "static": "Static",
    "dsb": "DSB",
    "ssb": "SSB",
    "granet": "GraNet",
    "granet_uniform": "GraNet (uniform)",
    "gmp": "GMP",
    "gmp_uniform": "GMP (uniform)",
    "nm_rigl": "RigL 2:4",
    "snip": "SNIP",
    "grasp": "GraSP",
    "edge_popup": "Edge-popup",
    "srigl": "SRigL",
    "random_pruning": "ER",
    "dst": "DST",
    "str": "STR",
    "synflow": "SynFlow",
    "snfs": "SNFS",
}
"""The label of a method -> its display name. The place in this list decides colour and marker: add at the end.

Methods twelve places apart share a colour, though no marker: they are no companions in a paper."""


@dataclass(frozen=True)
class Look:
    """How a method is shown: display name, colour as ``#rrggbb``, marker of matplotlib's, and place among others."""

    name: str
    colour: str
    marker: str
    place: tuple[int, str]


def parted(method: str) -> tuple[str, str]:
    """Return the label of a method, which may have several words, and what was changed in it: ``grow=random ...``."""
    words = method.split(" ")
    place = next((place for place, word in enumerate(words) if "=" in word), len(words))
    return " ".join(words[:place]), " ".join(words[place:])


def look(method: str, theme: str = "light") -> Look:
    """Return how a method is shown, by its label or by its label and what was changed in it (``rigl grow=random``).

    Several names of one composition (``dst, rigl_itop``) have the look of the first that ``NAMES`` knows. A method that
    it does not know has its own text as name, and colour and marker that depend on the text alone.
    """
    names = method.split(", ")
    if len(names) > 1 and any(parted(name)[0] in NAMES for name in names):
        looks = sorted((look(name, theme) for name in names), key=lambda one: one.place)
        return Look(", ".join(one.name for one in looks), looks[0].colour, looks[0].marker, looks[0].place)
    label, changes = parted(method)
    name = " ".join(part for part in (NAMES.get(label, label), changes) if part)
    is_known = label in NAMES
    place = [*NAMES].index(label) if is_known else int(hashlib.sha256(label.encode()).hexdigest(), 16)
    colours = COLOURS[theme]
    order = (place, changes) if is_known else (len(NAMES), method)
    return Look(name, colours[place % len(colours)], MARKERS[place % len(MARKERS)], order)
