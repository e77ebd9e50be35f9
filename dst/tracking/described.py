"""Where a run goes in wandb, and what it is called there, from its record alone and within wandb's limits."""

import re
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from dst.options import shown
from dst.records.label import method_of, wrappers_of
from dst.records.read import read_attempts, read_run
from dst.records.same import called
from dst.records.store import RecordError
from dst.tracking.limits import LONGEST_NAME, LONGEST_TAG, shortened, wrong_name

_DEFAULT_PROJECT: Final = "dst"

_SWEEPS: Final = re.compile(r"(range|choice|glob|interval|shuffle|sort|tag)\(")
_WITHIN: Final = re.compile(r"""\[[^][]*\]|\([^()]*\)|\{[^{}]*\}|'[^']*'|"[^"]*\"""")


class WrongNameError(RecordError):
    """The project or the entity (``option``) of a run has a name that wandb would refuse, and why (``problem``)."""

    def __init__(self, option: str, name: str, problem: str) -> None:
        self.option, self.name, self.problem = option, name, problem
        super().__init__(f"{option}={name} {problem}")


def destination(folder: Path, project: str | None = None, entity: str | None = None) -> tuple[str, str | None]:
    """Return the project and the entity (None: wandb's default) to which a run goes: those given, or its config's.

    ``RecordError`` if they cannot be read, ``WrongNameError`` if wandb would refuse them.
    """
    config = read_run(folder).get("config", {})
    if "tracking.project" not in config:
        raise RecordError("run.json lacks 'tracking.project'")
    project = project or config["tracking.project"] or _DEFAULT_PROJECT
    entity = entity or config.get("tracking.entity") or None
    for option, name in {"project": project, "entity": entity}.items():
        if name is not None and (problem := wrong_name(str(name))):
            raise WrongNameError(option, str(name), problem)
    return str(project), None if entity is None else str(entity)


def description(folder: Path) -> dict[str, Any]:
    """Return a run's description for wandb, within its limits; ``RecordError``."""
    about = read_run(folder)
    config = about["config"]
    method = method_of(about)
    wrapping = (told.partition("(")[0] for told in wrappers_of(about.get("identity", {})).values())
    tags = [config.get("model.name"), config.get("data.name"), method, *wrapping]
    wanted = [shortened(str(tag), LONGEST_TAG) for tag in [*tags, *(config.get("tracking.tags") or [])] if tag]
    return {
        "id": called(folder, about),
        "name": shortened(_name(about, folder), LONGEST_NAME),
        "group": shortened(str(config.get("output.group") or "default"), LONGEST_NAME),
        "tags": list(dict.fromkeys(wanted)),
        "notes": str(config.get("tracking.notes") or "") or None,
        "job_type": "train",
        "config": {**nested(config), "method": method},
    }


def _name(about: Mapping[str, Any], folder: Path) -> str:
    """Return the name of a run, with what its command swept beside: cells of one sweep have names of their own."""
    config, name = about["config"], str(about.get("name") or folder.name)
    beside = (f"{key}={shown(config[key])}" for key in _swept(about) if key in config.keys() - about.get("changed", {}))
    told = tuple(f".{word}" for word in name.split())
    return " ".join([name, *(text for text in beside if not f".{text}".endswith(told))])


def _swept(about: Mapping[str, Any]) -> list[str]:
    """Return the keys that the command of a run gives several values, in its order."""
    try:
        words = shlex.split(str(about.get("command", "")))
    except ValueError:  # a command that was cut off or changed by hand
        return []
    given = (word.partition("=") for word in words if "=" in word)
    return list(dict.fromkeys(key.lstrip("+") for key, _, value in given if _is_sweep(value)))


def _is_sweep(value: str) -> bool:
    """Say whether the value of an override, as it was typed, stands for several."""
    while (plain := _WITHIN.sub("", value)) != value:
        if _SWEEPS.match(value):
            return True
        value = plain
    return "," in value


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of dotted keys as nested mappings."""
    tree: dict[str, Any] = {}
    for dotted, value in config.items():
        *above, name = dotted.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return tree


def began(folder: Path) -> float:
    """Return when a run began (unix time): its first attempt or, if that is not recorded, when its folder was made."""
    attempts = read_attempts(folder)
    started = attempts[0].get("started") if attempts else None
    if isinstance(started, int | float):
        return float(started)
    return datetime.fromisoformat(read_run(folder)["created"]).timestamp()
