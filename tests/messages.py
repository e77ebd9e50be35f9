"""What no message for a user may look like."""

import re

_EMPTY_VALUE = re.compile(r"(?<![=<>! ])=(?=[:;,)\s]|$)")
"""``key=`` and then nothing; a message that begins so shows what was typed."""


def malformed(message: str) -> str | None:
    """Return what is wrong with how a message looks; None if nothing is."""
    first, *_ = message.partition(": ")
    if re.match(r"\[\S+=", message):
        return "it begins with the overrides of a cell"
    if re.search(r"\S  +\S", message):
        return "two spaces"
    if "exit codes below" in message:
        return "it points to a place that is not there"
    return "an empty value" if _EMPTY_VALUE.search(message.removeprefix(first)) else None
