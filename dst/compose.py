"""Hydra composition inside our own guard: overrides -> typed configs, with errors a user can act on.

The only module that knows Hydra. Everything wrong with the overrides is found before Hydra sees them, all at once;
what only Hydra can find (types, YAML syntax) is translated.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dst.config import Config, ConfigError, complete, flatten
from dst.registry import suggest

CONFIG_NAME = "config"
SCHEMA_NAME = "schema"

ConfigStore.instance().store(name=SCHEMA_NAME, node=Config)


def groups(conf: Path) -> dict[str, list[str]]:
    """Return the config groups (folders below ``conf``) and their options, nested ones as ``folder/option``."""
    return {
        folder.name: sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
        for folder in sorted(conf.iterdir())
        if folder.is_dir()
    }


def compose(conf: Path, overrides: Sequence[str], *, resolve: bool = True) -> DictConfig:
    """Return one composed config as Hydra has it; ConfigError if that fails."""
    with _hydra(conf):
        _check_overrides(_parse(overrides), groups(conf))
        return _compose(overrides, resolve=resolve)


def compose_cells(conf: Path, overrides: Sequence[str], *, multirun: bool) -> list[tuple[list[str], Config]]:
    """Return (overrides, config) of every cell: one, or with ``multirun`` the product of all swept values.

    Raises ConfigError with the problems of all overrides, or of all cells.
    """
    with _hydra(conf):
        parsed = _parse(overrides)
        _check_overrides(parsed, groups(conf))
        cells = [list(overrides)]
        if multirun:
            try:
                (cells,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
            except HydraException as error:
                raise ConfigError([_explain(error)]) from error
        configs, problems = [], []
        for cell in cells:
            try:
                configs.append((cell, _honestly_labelled(cell)))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return configs


def _honestly_labelled(overrides: Sequence[str]) -> Config:
    """Compose a cell; a method that overrides have changed carries the changes in its label, for tables to show.

    Its density and the interval of its updates have columns and keys of their own.
    """
    config = _typed(overrides)
    if any(text.lstrip("+").startswith("sparsity.label=") for text in overrides):
        return config
    pure = [text for text in overrides if not text.lstrip("+").startswith("sparsity.")]
    if len(pure) == len(overrides):
        return config
    original = flatten(complete(_typed(pure)))
    try:
        changed = flatten(complete(config))
    except ValueError:  # the checks will say what is wrong
        return config
    changes = [
        f"{key.removeprefix('sparsity.').removesuffix('.name')}={value}"
        for key, value in changed.items()
        if key.startswith("sparsity.") and value != original[key] and key not in _NO_PART_OF_THE_LABEL
    ]
    config.sparsity.label = " ".join([config.sparsity.label, *changes])
    return config


_NO_PART_OF_THE_LABEL = ("sparsity.density", "sparsity.label", "sparsity.update.every")


def _typed(overrides: Sequence[str]) -> Config:
    return cast(Config, OmegaConf.to_object(_compose(overrides, resolve=True)))


def to_yaml(config: Config) -> str:
    """Return a config as YAML text, keys in the schema's order."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def show(config: DictConfig, package: str | None) -> str:
    """Return a composed config, or the part of it at a dotted key, as YAML; ConfigError if there is no such part."""
    if package:
        config = OmegaConf.select(config, package)
        if config is None:
            groups_and_keys = suggest(package, [key for key in _known_keys() if "." not in key])
            raise ConfigError([f"--package {package}: no such part of the config: {groups_and_keys}"])
    return OmegaConf.to_yaml(config).rstrip() if OmegaConf.is_config(config) else str(config)


@contextmanager
def _hydra(conf: Path) -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf.resolve()), job_name="run", version_base="1.3"):
        yield


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(
                f"cannot read '{text}': {reason}. Write key=value or group=option; quote special characters"
            )
    if problems:
        raise ConfigError(problems)
    return parsed


def _check_overrides(parsed: Sequence[Override], known_groups: dict[str, list[str]]) -> None:
    """Raise ConfigError naming every unknown group, option and key among the overrides."""
    keys = _known_keys()
    problems = []
    for override in parsed:
        name, text = override.key_or_group, override.input_line
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            problems.append(f"{text} would be ignored: runs and their folders are not Hydra's; see the keys of output")
            continue
        if override.is_delete():
            problems.append(f"{text}: keys and groups cannot be deleted; set the key to its default or to null instead")
            continue
        if name in known_groups:
            for option in _options(override):
                if option not in known_groups[name]:
                    problems.append(f"{name}={option}: unknown {name}: {suggest(str(option), known_groups[name])}")
        elif name not in keys:
            near = suggest(name, [*keys, *known_groups]).split("allowed:")[0].strip()
            siblings = _siblings(name, keys) or [*known_groups, *(key for key in keys if "." not in key)]
            problems.append(f"{text}: unknown key '{name}': {near} allowed here: {', '.join(sorted(set(siblings)))}")
    if problems:
        raise ConfigError(problems)


def _options(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return [] if isinstance(override.value(), Glob) else list(override.sweep_string_iterator())
    return [override.value()]


def _known_keys() -> list[str]:
    """Return every dotted key, those of nodes included."""
    found = dict.fromkeys(flatten(Config()))
    for key in list(found):
        parts = key.split(".")
        found |= dict.fromkeys(".".join(parts[:i]) for i in range(1, len(parts)))
    return list(found)


def _siblings(name: str, keys: Sequence[str]) -> list[str]:
    """Return the keys at the same place as a dotted name that does not exist, if the place exists."""
    parent = name.rpartition(".")[0]
    return [key for key in keys if parent and key.rpartition(".")[0] == parent]


def _compose(overrides: Sequence[str], *, resolve: bool) -> DictConfig:
    try:
        config = hydra_compose(CONFIG_NAME, overrides=list(overrides))
        if resolve:
            OmegaConf.resolve(config)
            OmegaConf.to_container(config, throw_on_missing=True)
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([_explain(error)]) from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"a file of the config cannot be read: {' '.join(str(error).split())}"]) from error


def _explain(error: BaseException) -> str:
    """Return what Hydra and OmegaConf say of a failure, without their decoration."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        parts += [line for line in lines if not line.startswith(("reference_type", "object_type", "provider="))]
        cause = cause.__cause__
    told = "; ".join(dict.fromkeys(part.replace("full_key: ", "at key ") for part in parts))
    return told.removeprefix("Error merging override ").replace("; ", ": ", 1)
