"""Hydra composition inside our own guard: overrides -> typed configs, with errors a user can act on.

Only this module composes; ``dst.config.typed`` and ``overrides`` parse by Hydra, ``dst.cli`` and the launcher's plugin
answer to it.
"""

import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import unified_diff
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from dst.config.launcher import LauncherSettings
from dst.config.overrides import (
    LAUNCHER,
    cells_of,
    check_experiments,
    check_overrides,
    check_single,
    is_label,
    is_launchers,
    is_of_method,
    known_keys,
    override_text,
    own_overrides,
    parse,
    told,
    without_launchers,
)
from dst.config.own_keys import check_own_keys
from dst.config.references import referring_keys, resolve_all, resolve_at
from dst.config.schema import Config, ConfigError, Sparsity, complete, flatten, leaves
from dst.config.search import searched
from dst.config.typed import at_home, check_texts, for_hydra, parse_one
from dst.options import suggest
from dst.records.label import LABEL

CONFIG_NAME = "config"
SCHEMA_NAME = "schema"

ConfigStore.instance().store(name=SCHEMA_NAME, node=Config)

# Hydra takes plugins from its own namespace only; this makes ours importable without installing anything.
sys.path.append(str(Path(__file__).parents[1] / "launcher" / "plugin"))

IN_PROCESS: Final = "basic"
"""Hydra's own launcher, which stands for running one cell after another in this process."""


def groups(*places: Path) -> dict[str, list[str]]:
    """Return the config groups (folders below ``places``) and their options, nested ones as ``folder/option``."""
    found: dict[str, set[str]] = {LAUNCHER: {IN_PROCESS}}
    for place in places:
        folders = [path for path in place.iterdir() if path.is_dir() and path.name != "hydra"]
        for folder in [*folders, place / LAUNCHER]:
            options = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
            found.setdefault(str(folder.relative_to(place)), set()).update(options)
    return {group: sorted(options) for group, options in sorted(found.items())}


def compose(conf: Path, overrides: Sequence[str], *, resolve: bool = True) -> DictConfig:
    """Return one composed config as Hydra has it; ConfigError if that fails."""
    with _typed(conf, overrides) as (texts, _):
        config = _run(_by_hydra(texts))
        if resolve:
            with told():
                resolve_all(config)
                OmegaConf.to_container(config, throw_on_missing=True)
        return config


class ComposedCell(NamedTuple):
    """One cell of a command.

    ``overrides``: those of its own, which sweep nothing. ``changed``: what they, or a file such as that of an
    experiment, changed in the method that they choose: dotted key -> value. ``swept``: in what they differ from those
    of the other cells: key or group -> value, as it was typed.
    """

    overrides: list[str]
    config: Config
    changed: dict[str, Any]
    swept: Mapping[str, str] = MappingProxyType({})


@dataclass
class Composed:
    """The cells of a command, and who runs them (None: they run in this process)."""

    cells: list[ComposedCell]
    launcher: LauncherSettings | None = None


def compose_command(conf: Path, overrides: Sequence[str], *, multirun: bool) -> Composed:
    """Return the cells of a command: one, or with ``multirun`` the product of all swept values; and their launcher.

    Raises ConfigError with the problems of all overrides, or of all cells.
    """
    with _typed(conf, overrides) as (texts, parsed):
        if multirun:
            cells, composer = cells_of(parsed), Composer()
            composed = _composed(composer, cells)
            _check_one_launcher(composer, cells)
            first, *_ = [_compared(composer, cell) for cell in _ends(cells)]
            return Composed(composed, _launcher(first, cells[0]))
        check_single(parsed)
        raw = _by_hydra(without_launchers(texts))
        launcher, own = _launcher(raw, texts), _composed_once(_method(raw))
        config = _to_typed(_run(raw))
        return Composed([ComposedCell(texts, at_home(config), _changed(config, raw, own, parsed))], launcher)


def compose_each(conf: Path, cells: Sequence[Sequence[str]]) -> list[ComposedCell]:
    """Return cells given by their overrides, which sweep nothing; ConfigError as in ``compose_command``."""
    with _hydra(conf):
        texts = list(dict.fromkeys(text for cell in cells for text in cell))
        known = groups(conf)
        check_overrides(parse(texts, known), known, once=False)
        composer = Composer()
        composed = _composed(composer, [list(cell) for cell in cells])
        for cell in _ends(cells):
            _compared(composer, cell)
        return composed


# ---------------------------------------------------------------------------------------------------------------------
# The cells of a sweep


def _composed(composer: "Composer", cells: Sequence[list[str]]) -> list[ComposedCell]:
    """Return cells with their configs; ConfigError with the problems of all."""
    composed, problems = [], []
    for cell, own in zip(cells, own_overrides(cells), strict=True):
        try:
            composed.append(composer.cell(cell)._replace(swept=_values(own)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return composed


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """Return overrides by key or group, in their order."""
    return {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in overrides)}


def _ends(cells: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return the first and the last cell, once if they are the same."""
    return [*cells[:1], *cells[1:][-1:]]


def _compared(composer: "Composer", cell: Sequence[str]) -> DictConfig:
    """Return Hydra's own config for a cell; RuntimeError, an internal error, if Hydra composes another run of it."""
    found = _by_hydra(without_launchers(cell))
    own = OmegaConf.masked_copy(found, "hydra")
    there = to_yaml(at_home(_to_typed(_run(found), composer.moment)))
    here = to_yaml(composer.config(cell))
    if here != there:
        lines = "\n".join(unified_diff(there.splitlines(), here.splitlines(), "Hydra", "here", n=0, lineterm=""))
        raise RuntimeError(f"internal error: {' '.join(cell)} is composed otherwise than by Hydra:\n{lines}")
    return own


@dataclass
class _Chosen:
    """What Hydra composes of a choice of files, pickled: a copy by pickle takes a fifth of the time of a deep copy.

    ``typed``: the same as a typed config, if it can be one. ``referring``: those of its leaves that refer to others.
    ``method``: the overrides that choose the file of its method, and nothing else. ``launcher``: its name and settings.
    """

    raw: bytes
    typed: bytes | None
    referring: tuple[str, ...]
    method: tuple[str, ...]
    launcher: tuple[str, str]

    @cached_property
    def sparsity(self) -> Any:
        """The method as the files have it, its references as text."""
        return OmegaConf.to_container(pickle.loads(self.raw).sparsity, resolve=False)

    @cached_property
    def own_leaves(self) -> dict[str, Any] | None:
        """The leaves of the method by dotted key; None if they depend on the rest of a config. ValueError."""
        depends = any(key.startswith("sparsity.") and key not in _NOT_SHOWN for key in self.referring)
        return None if depends or self.typed is None else _leaves(pickle.loads(self.typed).sparsity)


class Composer:
    """What Hydra composes, for many cells: to be used while Hydra is initialised.

    Hydra reads the files that the overrides choose, which takes some 60 ms, and then sets all other overrides one after
    another. Here each distinct choice of files is composed once, and the others are set by Hydra's own function on a
    copy. If they set leaves only, then no others have to be read again than these and those that refer to others.
    """

    def __init__(self) -> None:
        loader: Any = GlobalHydra.instance().config_loader()
        self._is_group = cache(loader.repository.group_exists)
        self._known: dict[tuple[str, ...], _Chosen | ConfigError] = {}
        self.moment = DictConfig({})
        """Has what is the same in all cells of a sweep whenever they are composed, such as ``${now:%H}``."""

    def config(self, overrides: Sequence[str]) -> Config:
        """Return what Hydra composes of these overrides, as a typed config; ConfigError if it cannot."""
        return self.cell(overrides).config

    def cell(self, overrides: Sequence[str]) -> ComposedCell:
        """Return the cell that has these overrides; ConfigError if Hydra cannot compose it."""
        with told():
            parsed = [parse_one(text) for text in overrides]
            ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
            chosen = self._chosen(self._choosing(parsed))
            setting = [item for item in parsed if not (self._chooses(item) or item.is_hydra_override())]
            raw: DictConfig = pickle.loads(chosen.raw)
            ConfigLoaderImpl._apply_overrides_to_config(setting, raw)
            config = self._typed(raw, chosen, setting)
            own = self._chosen(chosen.method)
            has_own_file = chosen is own or chosen.sparsity == own.sparsity
            is_own = has_own_file and not any(map(is_of_method, setting))
            changed = {} if is_own else _changed(config, raw, own, setting)
            return ComposedCell(list(overrides), at_home(config), changed)

    def _typed(self, raw: DictConfig, chosen: _Chosen, setting: Sequence[Override]) -> Config:
        """Return ``raw``, what was chosen with other overrides set, as a typed config; this resolves ``raw``."""
        if chosen.typed is None or not all(map(_sets_a_leaf, setting)):
            return _to_typed(raw, self.moment)
        config: Config = pickle.loads(chosen.typed)
        with _at(raw, self.moment):
            for key in dict.fromkeys([*chosen.referring, *(str(item.key_or_group) for item in setting)]):
                _read_again(config, raw, key)
        return config

    def launcher(self, overrides: Sequence[str]) -> tuple[str, str]:
        """Return the name of the launcher that a cell's files choose, and its settings as text."""
        return self._chosen(self._choosing([parse_one(text) for text in overrides])).launcher

    def _choosing(self, overrides: Sequence[Override]) -> tuple[str, ...]:
        return tuple(str(item.input_line) for item in overrides if self._chooses(item))

    def _chooses(self, override: Override) -> bool:
        """Say, as Hydra does, whether an override chooses files of a group rather than setting keys."""
        return self._is_group(override.key_or_group) and not isinstance(override.value(), dict)

    def _chosen(self, choosing: tuple[str, ...]) -> _Chosen:
        if choosing not in self._known:
            try:
                self._known[choosing] = _composed_once(choosing)
            except ConfigError as error:
                self._known[choosing] = error
        found = self._known[choosing]
        if isinstance(found, ConfigError):
            raise ConfigError(found.problems)
        return found


def _composed_once(choosing: Sequence[str]) -> _Chosen:
    whole = _by_hydra(choosing)
    method, launcher = _method(whole), _launcher_of(whole)
    raw = _run(whole)
    pickled = pickle.dumps(raw, pickle.HIGHEST_PROTOCOL)
    referring = tuple(referring_keys(raw))
    if not _leaf_keys().issuperset(referring):  # a whole node is another one
        return _Chosen(pickled, None, (), method, launcher)
    try:
        typed = _to_typed(raw)
    except ConfigError:  # what is missing or wrong may be set by an override
        return _Chosen(pickled, None, (), method, launcher)
    return _Chosen(pickled, pickle.dumps(typed, pickle.HIGHEST_PROTOCOL), referring, method, launcher)


def _sets_a_leaf(override: Override) -> bool:
    """Say whether an override does nothing but give a leaf of the schema a value or a reference."""
    is_plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    return is_plain and override.key_or_group in _leaf_keys() and not isinstance(override.value(), dict)


def _read_again(config: Config, raw: DictConfig, key: str) -> None:
    """Give a leaf of a typed config the value that it has in ``raw``, as ``_to_typed`` would; this changes both."""
    *parents, name = key.split(".")
    node: Any = raw
    for parent in parents:
        node, config = node[parent], getattr(config, parent)
    resolve_at(raw, node, name)
    value = node[name]
    setattr(config, name, OmegaConf.to_object(value) if OmegaConf.is_config(value) else value)


@cache
def _leaf_keys() -> frozenset[str]:
    return frozenset(flatten(Config()))


# ---------------------------------------------------------------------------------------------------------------------
# Who runs the cells


def _launcher(chosen: DictConfig, overrides: Sequence[str]) -> LauncherSettings | None:
    """Return the settings of the launcher that is chosen, or None for running in this process.

    ``chosen``: what Hydra composes of the overrides without the launcher's options.
    """
    settings = [text for text in overrides if is_launchers(text)]
    if chosen.hydra.runtime.choices.get(LAUNCHER) == IN_PROCESS:
        if settings:
            why = "would be ignored: runs go one after another in this process"
            raise ConfigError([f"{text} {why}; add hydra/launcher=slurm or hydra/launcher=local" for text in settings])
        return None
    config = _by_hydra(overrides) if settings else chosen
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    with told():
        launcher: Any = Plugins.instance().instantiate_launcher(context, _no_task, config)
    found: LauncherSettings = launcher.settings
    return found


def _launcher_of(composed: DictConfig) -> tuple[str, str]:
    """Return the name of the launcher in what Hydra has composed, and its settings as text."""
    return str(composed.hydra.runtime.choices.get(LAUNCHER)), OmegaConf.to_yaml(composed.hydra.launcher)


def _check_one_launcher(composer: Composer, cells: Sequence[Sequence[str]]) -> None:
    """Raise ConfigError unless the files of all cells choose the same launcher with the same settings."""
    by_launcher: dict[tuple[str, str], str] = {}
    for cell, own in zip(cells, own_overrides(cells), strict=True):
        by_launcher.setdefault(composer.launcher(cell), " ".join(own))
    if len(by_launcher) > 1:
        told = "; ".join(f"{own}: {name}" for (name, _), own in by_launcher.items())
        raise ConfigError([f"a sweep has one launcher, its cells choose several ({told}); add {LAUNCHER}=... for all"])


def _no_task(config: Any) -> None:
    """Stand for Hydra's task function: a run is what its frozen config says."""


# ---------------------------------------------------------------------------------------------------------------------
# What was changed in a method


def _method(composed: DictConfig) -> tuple[str, ...]:
    """Return the overrides that choose the same method as something that Hydra has composed, and nothing else."""
    choice = composed.hydra.runtime.choices.get("sparsity")
    return () if choice is None else (override_text("sparsity", str(choice)),)


def _changed(config: Config, raw: DictConfig, own: _Chosen, overrides: Sequence[Override]) -> dict[str, Any]:
    """Return by dotted key in what the method of a config differs from its own file.

    ``raw``: the config, resolved, in which the references of ``own`` are resolved too. The label is among it if it was
    given; densities and the interval of the updates are not, they have columns and keys of their own.
    """
    label = config.sparsity.label
    try:
        new = _leaves(config.sparsity)
        old = own.own_leaves or _leaves(_placed(own, raw))
    except ConfigError:  # the file needs what only overrides give, so all of it is theirs
        old = _leaves(Sparsity(label=label))
    except ValueError:  # there is no such part: the checks will say so
        return {}
    is_given = label != old[LABEL] or any(map(is_label, overrides))
    changed = {
        key: value
        for key, value in new.items()
        if value != old[key] and key not in _NOT_SHOWN and not (value is None and _has_another_name(key, new, old))
    }
    return {LABEL: label, **changed} if is_given else changed


_NOT_SHOWN: Final = frozenset(
    {
        *(LABEL, "sparsity.density", "sparsity.update.every", "sparsity.init.digest"),
        *("sparsity.reparametrize.density", "sparsity.reparametrize.every"),
    }
)
"""Keys whose change is not said behind the label."""


def _placed(own: _Chosen, raw: DictConfig) -> Sparsity:
    """Return the method of one choice of files within another config, which this changes."""
    with told():
        raw.sparsity = pickle.loads(own.raw).sparsity
        OmegaConf.resolve(raw.sparsity)
        return cast(Sparsity, OmegaConf.to_object(raw.sparsity))


def _leaves(method: Sparsity) -> dict[str, Any]:
    """Return the leaves of a method by dotted key, defaults of its parts filled in; ValueError if there is no part."""
    return {key: value for key, value, _ in leaves(complete(Config(sparsity=method)).sparsity, "sparsity.")}


def _has_another_name(key: str, new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Say whether the slot of an option is filled otherwise, which says by itself that the option is gone."""
    name = f"{key.rpartition('.')[0]}.name"
    return new.get(name) != old.get(name)


# ---------------------------------------------------------------------------------------------------------------------
# Typed configs and text


def _to_typed(raw: DictConfig, moment: DictConfig | None = None) -> Config:
    """Return the config with its interpolations resolved, which changes ``raw``; ConfigError if that fails."""
    with told(), _at(raw, moment):
        resolve_all(raw)
        return cast(Config, OmegaConf.to_object(raw))


@contextmanager
def _at(raw: DictConfig, moment: DictConfig | None) -> Iterator[None]:
    """Resolve with what has been the same in earlier cells, and keep what this one adds."""
    if moment is not None:
        OmegaConf.copy_cache(moment, raw)
    yield
    if moment is not None:
        OmegaConf.copy_cache(raw, moment)


def to_yaml(config: Config) -> str:
    """Return a config as YAML text, keys in the schema's order."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # a sweep has thousands, and the C one is ten times as fast
    return yaml.dump(asdict(config), Dumper=dumper, sort_keys=False, allow_unicode=True)


def show(config: DictConfig, package: str | None) -> str:
    """Return a composed config, or the part of it at a dotted key, as YAML; ConfigError if there is no such part."""
    with told(f"--package {package}: " if package else ""):
        part = OmegaConf.select(config, package) if package else config
        if part is None:
            groups_and_keys = suggest(str(package), [key for key in known_keys() if "." not in key])
            raise ConfigError([f"--package {package}: no such part of the config: {groups_and_keys}"])
        return OmegaConf.to_yaml(part).rstrip() if OmegaConf.is_config(part) else str(part)


@contextmanager
def _typed(conf: Path, typed: Sequence[str]) -> Iterator[tuple[list[str], list[Override]]]:
    """Initialise Hydra for a command; yield its overrides as Hydra reads them, and parsed. Raises ConfigError."""
    texts, further = searched(conf, list(map(for_hydra, typed)))
    with _hydra(conf, further):
        places = [conf, *further]
        known = groups(*places)
        parsed = parse(texts, known)
        check_texts(typed)
        check_overrides(parsed, known)
        check_experiments(parsed, places)
        yield texts, parsed


@contextmanager
def _hydra(conf: Path, further: Sequence[Path] = ()) -> Iterator[None]:
    """Initialise Hydra with the config files in ``conf`` and, of what is not there, in ``further`` folders."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf.resolve()), job_name="run", version_base="1.3"):
        if further:
            loader: Any = GlobalHydra.instance().config_loader()
            path = loader.config_search_path
            schema = path.get_path().pop()  # which has to be the last
            for folder in further:
                path.append("command-line", str(folder))
            path.append(schema.provider, schema.path)
            loader.repository.initialize_sources(path)
        yield


def _by_hydra(overrides: Sequence[str]) -> DictConfig:
    """Return what Hydra composes of overrides, its own config (under ``hydra``) included; ConfigError if it cannot."""
    with told():
        found = hydra_compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)
        check_own_keys(found.hydra, _usual())
        return found


@cache
def _usual() -> DictConfig:
    """Return Hydra's own config where there are no files of ours."""
    loader: Any = GlobalHydra.instance().config_loader()
    return cast(DictConfig, loader.load_configuration(None, [], run_mode=RunMode.RUN, from_shell=False).hydra)


def _run(config: DictConfig) -> DictConfig:
    """Return what Hydra has composed without its own config, which is taken out."""
    with open_dict(config):
        del config["hydra"]
    return config
