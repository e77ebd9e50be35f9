"""References of a config to other keys of it, such as ``${seed}``, and the keys whose references lead nowhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf._impl import _resolve_container_value
from omegaconf.errors import OmegaConfBaseException

from dst.config.schema import ConfigError


def referring_keys(node: DictConfig, above: str = "") -> Iterator[str]:
    """Yield the dotted keys of interpolations, and of lists that have some in them."""
    for name, value in ((str(key), value) for key, value in node.items_ex(resolve=False)):
        items = range(len(value)) if OmegaConf.is_list(value) and not OmegaConf.is_interpolation(node, name) else ()
        if OmegaConf.is_interpolation(node, name) or any(OmegaConf.is_interpolation(value, i) for i in items):
            yield f"{above}{name}"
        elif OmegaConf.is_dict(value):
            yield from referring_keys(value, f"{above}{name}.")


def resolve_all(config: DictConfig) -> None:
    """Replace all references of a config by what they refer to; ConfigError names each key whose own leads nowhere."""
    with _named(config):
        OmegaConf.resolve(config)


def resolve_at(config: DictConfig, node: Any, name: str) -> None:
    """Replace the references at a name in a node of a config; ConfigError as in ``resolve_all``."""
    with _named(config):
        _resolve_container_value(node, name)


@contextmanager
def _named(config: DictConfig) -> Iterator[None]:
    try:
        yield
    except OmegaConfBaseException as error:
        raise ConfigError([*_unresolved(config)] or [_first_line(error)]) from error


def _unresolved(config: DictConfig) -> Iterator[str]:
    """Yield what is wrong with references, but not with those that only refer to others of which something is wrong."""
    problems: dict[str, tuple[str, str]] = {}
    for key in list(referring_keys(config)):
        place, _, name = key.rpartition(".")
        node: Any = OmegaConf.select(config, place) if place else config
        written: Any = OmegaConf.to_container(node, resolve=False)
        try:
            _resolve_container_value(node, name)
        except OmegaConfBaseException as error:
            problems[key] = (str(written[name]), _first_line(error))
    for key, (text, why) in problems.items():
        if not any(f"${{{other}}}" in text for other in problems if other != key):
            yield f"{key}={text}: {why}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
