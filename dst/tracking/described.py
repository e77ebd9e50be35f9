"""Where a run goes in wandb, and what it is called there, from its record alone and within wandb's limits."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from dst.records.label import method_of, wrappers_of
from dst.records.read import read_attempts, read_run
from dst.records.same import called
from dst.records.store import RecordError
from dst.records.swept import recorded_name
from dst.tracking.limits import LONGEST_NAME, LONGEST_TAG, shortened, wrong_name

_DEFAULT_PROJECT: Final = "dst"


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
        "name": shortened(recorded_name(about, called(folder, about)), LONGEST_NAME),
        "group": shortened(str(config.get("output.group") or "default"), LONGEST_NAME),
        "tags": list(dict.fromkeys(wanted)),
        "notes": str(config.get("tracking.notes") or "") or None,
        "job_type": "train",
        "config": {**nested(config), "method": method},
    }


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
