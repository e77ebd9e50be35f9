"""Hydra composition inside our own guard: overrides -> typed configs, with errors a user can act on.

The only module, beside the launcher's plugin, that knows Hydra. Everything wrong with the overrides is found before
Hydra sees them, all at once; what only Hydra can find (types, YAML syntax) is translated.
"""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dst.config import Config, ConfigError, complete, flatten
from dst.launcher.settings import LAUNCHER_OPTIONS, LauncherSettings
from dst.registry import suggest

CONFIG_NAME = "config"
SCHEMA_NAME = "schema"

ConfigStore.instance().store(name=SCHEMA_NAME, node=Config)

# Hydra takes plugins from its own namespace only; this makes ours importable without installing anything.
sys.path.append(str(Path(__file__).parent / "launcher" / "plugin"))

LAUNCHER: Final = "hydra/launcher"
"""The group that says who runs the cells of a sweep."""

IN_PROCESS: Final = "basic"
"""Hydra's own launcher, which stands for running one cell after another in this process."""


def groups(conf: Path) -> dict[str, list[str]]:
    """Return the config groups (folders below ``conf``) and their options, nested ones as ``folder/option``."""
    found = {
        folder.name: sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
        for folder in sorted(conf.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }
    launchers = (conf / LAUNCHER).glob("*.yaml")
    return {**found, LAUNCHER: sorted([IN_PROCESS, *(path.stem for path in launchers)])}


def compose(conf: Path, overrides: Sequence[str], *, resolve: bool = True) -> DictConfig:
    """Return one composed config as Hydra has it; ConfigError if that fails."""
    with _hydra(conf):
        _check_overrides(_parse(overrides), groups(conf))
        return _compose(overrides, resolve=resolve)


@dataclass
class Composed:
    """The cells of a command, each with its overrides, and who launches them (None: they run in this process)."""

    cells: list[tuple[list[str], Config]]
    launcher: LauncherSettings | None = None


def compose_command(conf: Path, overrides: Sequence[str], *, multirun: bool) -> Composed:
    """Return the cells of a command: one, or with ``multirun`` the product of all swept values; and their launcher.

    Raises ConfigError with the problems of all overrides, or of all cells.
    """
    with _hydra(conf):
        parsed = _parse(overrides)
        _check_overrides(parsed, groups(conf))
        cells = [list(overrides)]
        if not multirun:
            _check_single(parsed)
        else:
            try:
                (cells,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError([_explain(error)]) from error
        composer = Composer(conf)
        return Composed(_composed(composer, cells), _launcher(composer, cells[0]))


def compose_cells(conf: Path, overrides: Sequence[str], *, multirun: bool) -> list[tuple[list[str], Config]]:
    """Return (overrides, config) of every cell of a command; see ``compose_command``."""
    return compose_command(conf, overrides, multirun=multirun).cells


def compose_each(conf: Path, cells: Sequence[Sequence[str]]) -> list[tuple[list[str], Config]]:
    """Return (overrides, config) of cells whose overrides sweep nothing any more; ConfigError as above."""
    with _hydra(conf):
        for cell in cells:
            _check_overrides(_parse(cell), groups(conf))
        return _composed(Composer(conf), [list(cell) for cell in cells])


def _composed(composer: "Composer", cells: list[list[str]]) -> list[tuple[list[str], Config]]:
    configs, problems = [], []
    for cell in cells:
        try:
            configs.append((cell, composer.labelled(_of_the_run(cell))))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


def _of_the_run(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of Hydra itself, which are no part of a run's config."""
    return [text for text in overrides if not text.lstrip("+").startswith(("hydra.", "hydra/"))]


def _launcher(composer: "Composer", overrides: Sequence[str]) -> LauncherSettings | None:
    """Return the settings of the launcher that the overrides choose, or None for running in this process."""
    settings = [text for text in overrides if text.lstrip("+").startswith("hydra.launcher.")]
    choosing = [text for text in overrides if text not in settings]
    own = _of_the_run(choosing)
    chosen = composer.hydra(own) if own == choosing else _compose(choosing, resolve=False, with_hydra=True)
    if chosen.hydra.runtime.choices.get(LAUNCHER) == IN_PROCESS:
        if settings:
            told = "would be ignored: runs go one after another in this process"
            raise ConfigError([f"{text} {told}; add hydra/launcher=slurm or hydra/launcher=local" for text in settings])
        return None
    config = _compose(overrides, resolve=False, with_hydra=True) if settings else chosen
    state = GlobalHydra.instance()
    context = HydraContext(config_loader=state.config_loader(), callbacks=Callbacks())
    launcher: Any = Plugins.instance().instantiate_launcher(context, _no_task, config)
    found: LauncherSettings = launcher.settings
    return found


def _no_task(config: Any) -> None:
    """Stand for Hydra's task function: a run is what its frozen config says."""


def _honest_label(composer: "Composer", overrides: Sequence[str]) -> str:
    """Return the label of a cell: a method that overrides have changed carries the changes, for tables to show.

    Its density and the interval of its updates have columns and keys of their own.
    """
    config = composer.config(overrides)
    label = config.sparsity.label
    if any(text.lstrip("+").startswith("sparsity.label=") for text in overrides):
        return label
    pure = [text for text in overrides if not _is_of_method(text)]
    if len(pure) == len(overrides):
        return label
    original = flatten(complete(composer.config(pure)))
    try:
        changed = flatten(complete(config))
    except ValueError:  # the checks will say what is wrong
        return label
    changes = [
        f"{key.removeprefix('sparsity.').removesuffix('.name')}={value}"
        for key, value in changed.items()
        if key.startswith("sparsity.")
        and value != original[key]
        and key not in _NO_PART_OF_THE_LABEL
        and not (value is None and _has_another_name(key, changed, original))
    ]
    return " ".join([label, *changes])


def _has_another_name(key: str, changed: dict[str, Any], original: dict[str, Any]) -> bool:
    """Say whether the slot of an option is filled otherwise, which says by itself that the option is gone."""
    name = f"{key.rpartition('.')[0]}.name"
    return changed.get(name) != original.get(name)


def _is_of_method(text: str) -> bool:
    return text.lstrip("+").startswith("sparsity.")


_NO_PART_OF_THE_LABEL = ("sparsity.density", "sparsity.label", "sparsity.update.every", "sparsity.init.digest")


# ---------------------------------------------------------------------------------------------------------------------
# Composing many cells


class Composer:
    """Hydra's composition of a cell, without its repetition: to be used while Hydra is initialised.

    Hydra composes a cell from its files in about 70 ms. Here each distinct choice of groups is composed once; plain
    values (``seed=3``), which change nothing else, are then set on copies of the outcome.
    """

    def __init__(self, conf: Path) -> None:
        self._references = _references(conf)
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._labels: dict[tuple[str, ...], str] = {}

    def labelled(self, overrides: Sequence[str]) -> Config:
        """Return the config of a cell, whose label says how its method was changed."""
        base, plain = self._split(overrides)
        config = base.with_values(plain)
        # What other plain values are can make no difference to the method.
        deciding = (*base.overrides, *(text for text in plain if _is_of_method(text)))
        if deciding not in self._labels:
            self._labels[deciding] = _honest_label(self, deciding)
        config.sparsity.label = self._labels[deciding]
        return config

    def config(self, overrides: Sequence[str]) -> Config:
        """Return what Hydra composes of these overrides, as a typed config of its own; ConfigError if it cannot."""
        base, plain = self._split(overrides)
        return base.with_values(plain)

    def hydra(self, overrides: Sequence[str]) -> DictConfig:
        """Return Hydra's own config (under ``hydra``) as a cell has it."""
        base, _ = self._split(overrides)
        return base.hydra

    def _split(self, overrides: Sequence[str]) -> tuple["_Base", list[str]]:
        """Return the base of a cell, and the overrides that are plain values on top of it."""
        plain = [text for text in overrides if _is_plain(_parsed(text))]
        merged = [_key(_parsed(text)) for text in overrides if isinstance(_parsed(text).value(), dict)]
        plain = [text for text in plain if not self._decides(_key(_parsed(text)), merged)]
        deciding = [text for text in overrides if text not in plain]
        keys = [_key(_parsed(text)) for text in deciding if _key(_parsed(text)) in _leaf_keys()]
        if any(_related(_key(_parsed(text)), key) for text in plain for key in keys):  # the later one of the two wins
            deciding, plain = list(overrides), []
        return self._base(deciding), plain

    def _decides(self, key: str, merged: Sequence[str]) -> bool:
        """Say whether another value is interpolated from this key, as far as can be told, or it is merged with one."""
        return self._references is None or any(_related(key, other) for other in (*self._references, *merged))

    def _base(self, overrides: Sequence[str]) -> "_Base":
        key = tuple(overrides)
        if key not in self._bases:
            self._bases[key] = _Base(key, _compose(overrides, resolve=False, with_hydra=True))
        return self._bases[key]


def _is_plain(override: Override) -> bool:
    """Say whether an override gives a leaf a value of its own, rather than choosing a group or merging a node."""
    text = override.input_line or ""
    is_value = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    refers = "${" in text or "???" in text
    return is_value and not refers and override.key_or_group in _leaf_keys()


class _Base:
    """The composition of what decides more than one value: as Hydra has it, and typed."""

    def __init__(self, overrides: tuple[str, ...], raw: DictConfig) -> None:
        self.overrides = overrides
        self.hydra = OmegaConf.masked_copy(raw, "hydra")
        with open_dict(raw):
            del raw["hydra"]
        self._raw = raw
        self._config = _to_typed(raw)
        self._converted: dict[str, Any] = {}

    def with_values(self, overrides: Sequence[str]) -> Config:
        """Return a copy of the typed config with plain values set; ConfigError if one does not fit its key's type."""
        config: Config = _copied(self._config)
        for text in overrides:
            if text not in self._converted:
                self._converted[text] = self._convert(_parsed(text))
            *parents, last = _key(_parsed(text)).split(".")
            node: Any = config
            for parent in parents:
                node = getattr(node, parent)
            value = self._converted[text]
            setattr(node, last, list(value) if isinstance(value, list) else value)
        return config

    def _convert(self, override: Override) -> Any:
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], self._raw)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([_explain(error)]) from error
        value = OmegaConf.select(self._raw, _key(override))
        return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def _copied(node: Any) -> Any:
    """Return a copy of a tree of dataclasses and lists; ten times as fast as ``deepcopy``."""
    new = copy.copy(node)
    for name, value in vars(node).items():
        if is_dataclass(value):
            setattr(new, name, _copied(value))
        elif isinstance(value, list):
            setattr(new, name, list(value))
    return new


def _references(conf: Path) -> frozenset[str] | None:
    """Return the keys that interpolations in any config file name; None if one is not of the plain kind ``${a.b}``."""
    names: set[str] = set()
    for path in conf.rglob("*.yaml"):
        text = path.read_text(errors="replace")
        found = re.findall(r"\$\{(\w+(?:\.\w+)*)\}", text)
        if len(found) != text.count("${"):
            return None
        names.update(found)
    return frozenset(names)


def _related(one: str, other: str) -> bool:
    """Say whether two dotted keys are the same, or one is a part of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _key(override: Override) -> str:
    return str(override.key_or_group)


@cache
def _leaf_keys() -> frozenset[str]:
    return frozenset(flatten(Config()))


@cache
def _parsed(text: str) -> Override:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_override(text)


# ---------------------------------------------------------------------------------------------------------------------
# Typed configs and text


def _to_typed(raw: DictConfig) -> Config:
    try:
        resolved = copy.deepcopy(raw)
        _resolve(resolved)
        return cast(Config, OmegaConf.to_object(resolved))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([_explain(error)]) from error


def _resolve(config: DictConfig) -> None:
    OmegaConf.resolve(config)
    OmegaConf.to_container(config, throw_on_missing=True)


def to_yaml(config: Config) -> str:
    """Return a config as YAML text, keys in the schema's order."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # a sweep has thousands, and the C one is ten times as fast
    return yaml.dump(asdict(config), Dumper=dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Config:
    """Return the config that ``to_yaml`` wrote; ConfigError if the text is no such config."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text))
        return cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([f"this is no config of a run: {_explain(error)}"]) from error


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
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(_parsed(text))
            _options(parsed[-1])  # some of what can be parsed cannot be swept, such as a range among other values
        except (HydraException, OmegaConfBaseException) as error:
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
    problems: list[str] = []
    for override in parsed:
        name, text = override.key_or_group, override.input_line
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            problems += _check_hydra(override, known_groups[LAUNCHER])
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


def _check_single(parsed: Sequence[Override]) -> None:
    """Raise ConfigError naming every override that gives several values, which only a sweep has."""
    swept = [override.input_line for override in parsed if override.is_sweep_override()]
    if swept:
        raise ConfigError([f"{text} gives several values: to sweep over them, add --multirun (-m)" for text in swept])


def _check_hydra(override: Override, launchers: list[str]) -> Iterator[str]:
    """Yield what is wrong with an override of Hydra's own config, of which users choose and set the launcher only."""
    name, text = str(override.key_or_group), override.input_line
    options = [f"hydra.launcher.{item}" for item in LAUNCHER_OPTIONS]
    if name not in (LAUNCHER, *options):
        allowed = suggest(name, [LAUNCHER, *options])
        yield f"{text} would be ignored: of Hydra's own keys only the launcher's count; {allowed}"
    elif override.is_delete() or override.is_sweep_override():
        yield f"{text}: a sweep has one launcher; give {name} one value"
    elif name == LAUNCHER and override.value() not in launchers:
        yield f"{text}: unknown launcher: {suggest(str(override.value()), launchers)}"


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


def _compose(overrides: Sequence[str], *, resolve: bool, with_hydra: bool = False) -> DictConfig:
    try:
        config = hydra_compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=with_hydra)
        if resolve:
            _resolve(config)
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
