"""How an option is declared. Standard library only: anybody may import this."""

from dataclasses import field
from typing import Any


def aside(default: Any) -> Any:
    """Declare a field that is no part of the run's identity."""
    return field(default=default, metadata={"identity": False})
