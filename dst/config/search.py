"""Further folders of config files: ``hydra.searchpath``, for which ``--config-dir`` is short."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from dst.config.overrides import told
from dst.config.schema import ConfigError
from dst.config.typed import parse_one, quoted

SEARCHPATH: Final = "hydra.searchpath"


def config_dirs(folders: Sequence[str]) -> str:
    """Return the override that ``--config-dir`` is short for."""
    return f"{SEARCHPATH}=[{','.join(map(quoted, folders))}]"


def searched(conf: Path, overrides: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the overrides that are left, and the folders that are searched after ``conf``, which comes first.

    Raises ConfigError if one of them is no folder.
    """
    ours = [text for text in overrides if text.lstrip("+").startswith(f"{SEARCHPATH}=")]
    if len(ours) > 1:
        raise ConfigError([f"{' and '.join(ours)}: {SEARCHPATH} is given {len(ours)} times; give one list of folders"])
    with told():
        values = [parse_one(text).value() for text in ours] or [_of_file(conf / "config.yaml")]
    (value,) = values
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        named = ours[0] if ours else SEARCHPATH
        raise ConfigError([f"{named}: must be a list of folders, e.g. {SEARCHPATH}=[../mine]"])
    folders = [(item, _folder(item)) for item in value]
    if missing := [item for item, folder in folders if folder is None]:
        raise ConfigError([f"{SEARCHPATH} (--config-dir): there is no folder {item}" for item in missing])
    return [text for text in overrides if text not in ours], [folder for _, folder in folders if folder is not None]


def _of_file(file: Path) -> Any:
    """Return what the main file says of it."""
    found = OmegaConf.select(OmegaConf.load(file), SEARCHPATH)
    return [] if found is None else OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _folder(item: str) -> Path | None:
    """Return the folder that an item names, as a path, or by ``file://`` or ``pkg://``; None if there is none."""
    package = item.removeprefix("pkg://")
    if package == item:
        found = Path(os.path.expanduser(item.removeprefix("file://"))).absolute()
        return found if found.is_dir() else None
    try:
        places = getattr(find_spec(package), "submodule_search_locations", None)
    except (ImportError, ValueError):
        return None
    return Path(places[0]) if places else None
