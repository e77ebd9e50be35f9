"""Reading the frozen config of a run: only if it is as recorded, and every value as it stands.

The config is executed, ``hardware.slurm.setup`` even as shell. So a file that was changed is refused, nothing in it is
interpolated, and missing keys are errors.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

import yaml

from dst.config.identity import SCHEMA_VERSION, run_id
from dst.config.schema import Config, ConfigError, replaced
from dst.files import sha256
from dst.records.read import read_run
from dst.records.store import RecordError

_PARSER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST: Final = 10
"""The most levels of a config. A deeper file is no config, and could exhaust the parser."""

_AGAIN: Final = "give the run's command again"


class ContinuedError(ConfigError):
    """A run was continued with another config since its job was submitted."""


def frozen_config(folder: Path, submitted: str | None = None) -> Config:
    """Return the frozen config of a run folder.

    ``submitted``: the digest of the config with which the run's job was submitted. Raises ConfigError unless the file
    is the one that was recorded and submitted for this run; ContinuedError if it is as recorded, but not as submitted.
    """
    path = folder / "config.yaml"
    try:
        data, about = path.read_bytes(), read_run(folder)
    except (OSError, RecordError) as error:
        raise ConfigError([f"the config of run {folder.name} cannot be read ({error}): {_AGAIN}"]) from error
    found, recorded = sha256(data), about.get("config_digest")
    if submitted not in (None, found) and found == recorded:
        raise ContinuedError([f"{path}: it was continued with another config since this job was submitted"])
    for what, wanted in (("submitted", submitted or found), ("recorded in run.json", recorded)):
        if found != wanted:
            raise ConfigError([changed_file(path, found, wanted, what)])
    if (schema := about.get("schema")) != SCHEMA_VERSION:
        raise ConfigError([f"run {folder.name}: {other_schema(schema)}"])
    try:
        config = from_yaml(data.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        raise ConfigError([f"{path}: {problem}; {_AGAIN}" for problem in problems]) from error
    if run_id(config) != about.get("id"):
        raise ConfigError(
            [f"{path} is the config of run {run_id(config)}, and run.json is of {about.get('id')}: {_AGAIN}"]
        )
    return config


def other_schema(schema: object) -> str:
    """Return why a run with another version of the schema is not continued by this code."""
    return (
        f"it has schema {schema}, and this code has schema {SCHEMA_VERSION}: only the code that it was begun with can "
        "continue it, and its command begins a new run"
    )


def changed_file(path: Path, found: str, wanted: Any, what: str) -> str:
    """Return the message about a file whose digest is not the one that was recorded or submitted."""
    return (
        f"{path} is not what was {what} (digest {found[:12]} instead of {str(wanted)[:12]}): it was changed. "
        f"Restore it; or remove it and {_AGAIN}"
    )


def from_yaml(text: str) -> Config:
    """Return the config that ``to_yaml`` wrote; ConfigError if the text is not a complete, plain config."""
    try:
        _check_plain(text)
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"this is no config of a run: {' '.join(str(error).split())}"]) from error
    problems = list(_problems(Config, data, ""))
    if problems:
        raise ConfigError([f"this is no config of a run: {problem}" for problem in problems])
    config: Config = _made(Config, data)
    return config


def _check_plain(text: str) -> None:
    """Raise ValueError, before anything is built, if YAML holds more than keys and values; or a YAMLError."""
    depth = 0
    for event in yaml.parse(text, Loader=_PARSER):
        if (anchor := getattr(event, "anchor", None)) is not None:
            raise ValueError(f"it has an anchor or an alias ({anchor})")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"it has a tag ({tag})")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is more than {_DEEPEST} levels deep")


class _Loader(_PARSER):  # type: ignore[misc, valid-type]
    """Refuses a key that occurs twice; YAML itself would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if twice := {str(key) for key in keys if keys.count(key) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))} twice")
        return super().construct_mapping(node, deep=deep)


# ---------------------------------------------------------------------------------------------------------------------
# Against the schema


def _problems(kind: Any, value: Any, key: str) -> Iterator[str]:
    """Yield the problems of a value at a dotted key that should have the schema's type ``kind``."""
    if not _is_node(kind):
        if not _fits(kind, value):
            yield f"{key} is {_shown(value)}, which is no {kind.__name__ if kind in (str, int, bool, float) else kind}"
        return
    if not isinstance(value, dict):
        yield f"{key or 'it'} is {_shown(value)} and no mapping of keys to values"
        return
    types, prefix = _types(kind), key and f"{key}."
    yield from (f"{prefix}{name} is missing" for name in types if name not in value)
    yield from (f"{prefix}{name} is no key of a config{replaced(prefix + name)}" for name in value if name not in types)
    for name, inner in types.items():
        if name in value:
            yield from _problems(inner, value[name], f"{prefix}{name}")


def _is_node(kind: Any) -> bool:
    return is_dataclass(kind)


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(get_args(kind)[0], item) for item in value)
    if get_args(kind):  # a union with None
        return any(_fits(one, value) for one in get_args(kind))
    if kind is float:  # which may hold a whole number
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _made(kind: Any, value: Any) -> Any:
    if not _is_node(kind):
        return value
    return kind(**{name: _made(inner, value[name]) for name, inner in _types(kind).items()})


@cache
def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)
