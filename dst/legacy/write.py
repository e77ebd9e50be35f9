"""A plan as overrides: only what differs from the files that it chooses, in their order; and the presets it equals."""

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from dst.config.checks import check
from dst.config.compose import compose_command, override_text
from dst.config.identity import run_id
from dst.config.schema import Config, ConfigError, complete, get
from dst.legacy.plan import Plan


def overrides(conf: Path, plan: Plan) -> list[str]:
    """Return the overrides that make the run of a plan; ConfigError with all that is wrong with it."""
    chosen = [f"{key}={value}" for key, value in plan.values.items() if is_group(key)]
    base = composed(conf, *chosen)
    filled = complete(base)
    keys = {key: value for key, value in plan.values.items() if not is_group(key)}
    changed = [_text(key, value) for key, value in keys.items() if _differs(base, filled, key, value)]
    found = sorted(chosen, key=_place) + sorted(changed, key=_place)
    problems = check(composed(conf, *found))
    if problems:
        raise ConfigError(problems)
    return found


@cache
def composed(conf: Path, *texts: str) -> Config:
    """Return the config that overrides make; it is kept, and not to be changed."""
    (cell,) = compose_command(conf, texts, multirun=False).cells
    return cell.config


_ORDER = ("model", "data", "sparsity", "correction", "procedure", "schedule", "hardware", "tracking", "seed")


def is_group(key: str) -> bool:
    """Say whether a key chooses a file."""
    return "." not in key and key != "seed"


def _place(text: str) -> int:
    return _ORDER.index(text.partition("=")[0].partition(".")[0])


def _differs(base: Config, filled: Config, key: str, value: Any) -> bool:
    """Say whether a key has to be given its value: null is what a file says, any other value what is used."""
    now = get(base, key) if value is None else get(filled, key)
    return bool(now != value)


def _text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return override_text(key, value)
    if isinstance(value, list):
        return f"{key}=[{','.join(map(_number, value))}]"
    return f"{key}={_number(value)}"


def _number(value: Any) -> str:
    """Return a value as people write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return format(value, ".12g") if value < 1e-4 else repr(round(value, 12))
    return str(value)


def same_as(conf: Path, texts: Sequence[str], paper: str, commands: Path) -> str | None:
    """Return the preset of a paper, with its overrides, that is the same run; None if none is.

    ``commands``: the list of published commands, beside which the presets' folders are.
    """
    chosen = {text for text in texts if is_group(text.partition("=")[0])}
    presets = [preset for preset in _presets(commands, paper) if _choices(commands.parent, preset) <= chosen]
    own = run_id(composed(conf, *texts))
    return next((" ".join(preset) for preset in presets if run_id(composed(conf, *preset)) == own), None)


@cache
def _presets(commands: Path, paper: str) -> tuple[tuple[str, ...], ...]:
    """Return the presets of a paper that its list of commands names, each with its overrides."""
    if not commands.is_file():
        return ()
    with commands.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["paper"] == paper]
    return tuple(dict.fromkeys((f"+experiment={row['preset']}", *row["overrides"].split()) for row in rows))


_OVERRIDDEN: Final = "override /"


def _choices(folder: Path, preset: Sequence[str]) -> set[str]:
    """Return which network, data and method a preset chooses: what tells most of them apart without composing them."""
    found: dict[str, str] = {}
    name: str | None = preset[0].partition("=")[2]
    while name is not None:
        defaults = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")).get("defaults", [])
        for entry in defaults:
            if isinstance(entry, dict):
                found = {key.removeprefix(_OVERRIDDEN): value for key, value in entry.items()} | found
        above = [entry for entry in defaults if isinstance(entry, str) and entry.startswith("/experiment/")]
        name = above[0].removeprefix("/experiment/") if above else None
    return {f"{group}={found[group]}" for group in ("model", "data", "sparsity", "correction") if group in found}
