"""The limits of wandb. Its server refuses a whole run for one tag that is too long, sometimes only when it is sent.

Checked against the settings of wandb 0.31 and against its server, which refused tags and job types beyond 64
characters, and projects, groups and display names beyond 128.
"""

from typing import Final

LONGEST_TAG: Final = 64
LONGEST_NAME: Final = 128
"""Of projects, entities and groups, and of the names of runs."""

_SEPARATORS: Final = "/\\#?%:"
"""Names of projects and entities may not contain these, since they are parts of addresses."""


def wrong_length(text: str, longest: int) -> str | None:
    """Return what is wrong with the length of a text; None if wandb takes it."""
    return None if 1 <= len(text) <= longest else f"has {len(text)} characters; wandb takes 1 to {longest}"


def wrong_name(text: str) -> str | None:
    """Return what is wrong with the name of a project or an entity; None if wandb takes it."""
    if found := sorted({mark for mark in text if mark in _SEPARATORS or not mark.isprintable()}):
        return f"contains {' '.join(map(repr, found))}; wandb takes none of {' '.join(_SEPARATORS)}"
    return wrong_length(text.strip(), LONGEST_NAME)


def shortened(text: str, longest: int) -> str:
    """Return a text of at most this length. The middle is left out, since both ends tell runs apart."""
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 3]}...{text[-tail:]}"
