"""Values of tables and figures as text."""

import re
from numbers import Real
from typing import Any, Final

import pandas as pd

NOTHING: Final = "—"
_DIGEST: Final = re.compile("[0-9a-f]{64}")


def cell_text(value: Any, spec: str = ".10g") -> str:
    """Return a value of a table as text: a dash if it is missing, numbers by their format, digests cut short."""
    if pd.isna(value):
        return NOTHING
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return format(value, spec) if isinstance(value, Real) and not isinstance(value, bool) else str(value)
