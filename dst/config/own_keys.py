"""Hydra's own keys in config files: they are refused as they are on a command line, unless they are heeded here."""

from enum import Enum
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf

from dst.config.schema import ConfigError

_HEEDED: Final = ("launcher.", "searchpath")
_OF_COMMAND: Final = ("runtime.", "overrides.", "job.override_dirname", "job.config_name", "help.", "hydra_help.")
"""Hydra's own account of a command, and its help."""


def check_own_keys(found: DictConfig, usual: DictConfig) -> None:
    """Raise ConfigError if config files set keys of Hydra's own, such as ``hydra.mode``, that have no effect here.

    ``found``: what Hydra has composed under ``hydra``; ``usual``: the same without any files of ours.
    """
    defaults = _leaves(OmegaConf.to_container(usual, resolve=False))
    given = _leaves(OmegaConf.to_container(found, resolve=False))
    problems = [
        f"the config files set hydra.{key}={value.name if isinstance(value, Enum) else value}, which would be ignored: "
        "of Hydra's own keys only the launcher's and hydra.searchpath count; a sweep is typed: -m key=value,value"
        for key, value in given.items()
        if not key.startswith((*_HEEDED, *_OF_COMMAND)) and value != defaults.get(key)
    ]
    if problems:
        raise ConfigError(problems)


def _leaves(node: Any, above: str = "") -> dict[str, Any]:
    """Return leaves by dotted key."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found
