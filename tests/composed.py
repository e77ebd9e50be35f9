"""Configs as commands have them."""

from collections.abc import Sequence
from pathlib import Path

from dst.config.compose import compose_command
from dst.config.schema import Config


def compose_cells(conf: Path, overrides: Sequence[str], *, multirun: bool) -> list[tuple[list[str], Config]]:
    """Return (overrides, config) of every cell of a command; see ``compose_command``."""
    return [(cell.overrides, cell.config) for cell in compose_command(conf, overrides, multirun=multirun).cells]
