"""How each method is shown: one name, colour and marker, the same in every table and figure."""

import hashlib
from dataclasses import dataclass
from typing import Final

COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999933")
"""The palette of Okabe and Ito, safe for colour-blind readers; its yellow, too pale for lines, is an olive."""

MARKERS: Final = "osD^vPX"  # coprime in number with the colours: 56 methods before a pair repeats

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
    "dst": "DST",
    "snfs": "SNFS",
    "srigl": "SRigL",
    "nm_rigl": "RigL 2:4",
    "random_pruning": "ER",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "edge_popup": "Edge-popup",
    "str": "STR",
}
"""The label of a method -> its display name. The place in this list decides colour and marker: add at the end."""


@dataclass(frozen=True)
class Look:
    """How a method is shown: its display name, a colour as ``#rrggbb``, and a marker of matplotlib's."""

    name: str
    colour: str
    marker: str


def look(method: str) -> Look:
    """Return how a method is shown, by its label or by its label and what was changed in it (``rigl grow=random``).

    A method that ``NAMES`` does not know has its own text as name, and a place that depends on the text alone.
    """
    label, _, changes = method.partition(" ")
    place = [*NAMES].index(label) if label in NAMES else int(hashlib.sha256(label.encode()).hexdigest(), 16)
    name = " ".join(part for part in (NAMES.get(label, label), changes) if part)
    return Look(name, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
