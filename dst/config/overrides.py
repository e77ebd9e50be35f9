"""Overrides as a user types them: what they say, what is wrong with them, and the cells that they make.

Everything wrong with them is found before Hydra composes anything, all at once; what only Hydra can find (types, YAML
syntax) is reported in Hydra's words, without their decoration.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final

import yaml
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dst.config.launcher import LAUNCHER_OPTIONS
from dst.config.schema import Config, ConfigError, flatten, replaced
from dst.config.typed import as_text, parse_one, quoted, repeated
from dst.options import shown, suggest
from dst.records.label import LABEL

LAUNCHER: Final = "hydra/launcher"
"""The group that says who runs the cells of a sweep."""
EXPERIMENT: Final = "experiment"
"""The group whose files hold overrides only. None of them is chosen by default, so one is added by ``+``."""


class _Options:
    """The options of groups, nested ones too, as ``glob`` asks for them."""

    def __init__(self, known: Mapping[str, list[str]]) -> None:
        self._known = known

    def get_group_options(self, group_name: str, results_filter: Any = None) -> list[str]:
        """Return the options of a group; none if there is no such group."""
        return self._known.get(group_name, [])


def parse(overrides: Sequence[str], known_groups: Mapping[str, list[str]]) -> list[Override]:
    """Return overrides as Hydra reads them. ConfigError names every one that it cannot read."""
    parsed, problems = [], []
    options: Any = _Options(known_groups)
    for text in overrides:
        try:
            parsed.append(parse_one(text))
            parsed[-1].config_loader = options
            _texts(parsed[-1])  # some of what can be parsed cannot be swept, such as a range among other values
        except Exception as error:  # Hydra's own, but also AssertionError, ValueError and others
            reason = (str(error) or type(error).__name__).splitlines()[0]
            working = as_text(text)
            remedy = f"as text: {working}" if working else "key=value or group=option; quote special characters"
            problems.append(f"cannot read '{text}': {reason}. Write {remedy}")
    if problems:
        raise ConfigError(problems)
    return parsed


def _texts(override: Override) -> list[str]:
    """Return what an override is in the cells of a sweep, one text a value."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [override_text(override.get_key_element(), element) for element in override.sweep_iterator()]


def override_text(key: str, element: Any) -> str:
    """Return the override that gives a key one of the values swept.

    Hydra's own text for it can be another value (``str(3)``) or unreadable (an interpolation with quotes inside).
    """
    text = f"{key}={Override._get_value_element_as_str(element)}"
    if not isinstance(element, str) or isinstance(element, QuotedString):
        return text
    try:
        if parse_one(text).value() == element:
            return text
    except (HydraException, OmegaConfBaseException):
        pass
    return f"{key}={quoted(element)}"


def _options(override: Override) -> list[Any]:
    """Return the values that an override gives."""
    if not override.is_sweep_override():
        return [override.value()]
    return [Override._convert_value(element) for element in override.sweep_iterator()]


def cells_of(parsed: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each cell: those of a single run, each with one of its values."""
    with told():
        cells = [list(cell) for cell in product(*map(_texts, parsed))]
    if not cells:
        empty = [override.input_line for override in parsed if not _texts(override)]
        raise ConfigError([f"{text}: there is no such value, so the sweep has no cells" for text in empty])
    return cells


def own_overrides(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return for each cell what tells it from the others: those of its overrides that not all have."""
    common = set[str]().union(*cells[:1]).intersection(*cells)
    return [[text for text in cell if text not in common] for cell in cells]


def is_of_method(override: Override) -> bool:
    """Say whether an override changes the method rather than choosing it."""
    key = str(override.key_or_group)
    return key.startswith("sparsity.") or (key == "sparsity" and isinstance(override.value(), dict))


def is_label(override: Override) -> bool:
    """Say whether an override gives the method its label."""
    value = override.value()
    return override.key_or_group == LABEL or (
        override.key_or_group == "sparsity" and isinstance(value, dict) and "label" in value
    )


def is_launchers(text: str) -> bool:
    """Say whether an override sets an option of the launcher."""
    return str(parse_one(text).key_or_group).startswith("hydra.launcher.")


def without_launchers(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without the options of the launcher, which the one that is chosen may not have."""
    return [text for text in overrides if not is_launchers(text)]


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with them


def check_overrides(parsed: Sequence[Override], known_groups: dict[str, list[str]], *, once: bool = True) -> None:
    """Raise ConfigError naming every unknown group, option and key among the overrides, and, if ``once``, each of two.

    Of what is given twice Hydra takes the last, silently. Several experiments have a message of their own.
    """
    keys = known_keys()
    problems = list(repeated([each for each in parsed if each.key_or_group != EXPERIMENT])) if once else []
    for override in parsed:
        name, text = override.key_or_group, override.input_line
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            problems += _check_hydra(override, known_groups[LAUNCHER])
            continue
        if override.is_delete():
            problems.append(f"{text}: keys and groups cannot be deleted; set the key to its default or to null instead")
            continue
        if name == EXPERIMENT in known_groups:
            problems += _check_experiment_names(override, known_groups[EXPERIMENT])
        elif name in known_groups:
            for option in _options(override):
                if option not in known_groups[name] and not isinstance(option, dict):  # which sets keys of the group
                    problems.append(
                        f"{name}={shown(option)}: unknown {name}: {suggest(str(option), known_groups[name])}"
                    )
        elif told_of := replaced(name):
            problems.append(f"{text}: there is no key '{name}' any more{told_of}")
        elif name in keys and (below := _taken_for_a_key(override, keys)):
            problems.append(f"{text}: {name} has keys of its own, of which one may be meant: {', '.join(below)}")
        elif name not in keys:
            near = suggest(name, [*keys, *known_groups]).partition("allowed:")[0]
            siblings = _siblings(name, keys) or [*known_groups, *(key for key in keys if "." not in key)]
            problems.append(f"{text}: unknown key '{name}': {near}allowed here: {', '.join(sorted(set(siblings)))}")
    if problems:
        raise ConfigError(problems)


def _check_experiment_names(override: Override, experiments: list[str]) -> Iterator[str]:
    """Yield problems of an override that chooses experiments."""
    text = str(override.input_line)
    for option in _options(override):
        if isinstance(option, list):
            yield f"{text}: {_ONE_EXPERIMENT}"
        elif option not in experiments:
            yield f"{EXPERIMENT}={shown(option)}: unknown {EXPERIMENT}: {suggest(str(option), experiments)}"
    if not override.is_add():
        yield f"{text}: an experiment is added to the default run: write +{text.lstrip('+')}"


_ONE_EXPERIMENT: Final = f"a run has one experiment; to sweep over several, write -m +{EXPERIMENT}=one,another"


def check_experiments(parsed: Sequence[Override], folders: Sequence[Path]) -> None:
    """Raise ConfigError if a run has several experiments, or if the file of one sets no keys of the whole config.

    ``folders``: where files of configs are; the first that has one counts.
    """
    chosen = [override for override in parsed if override.key_or_group == EXPERIMENT]
    if len(chosen) > 1:
        raise ConfigError([f"{' '.join(str(override.input_line) for override in chosen)}: {_ONE_EXPERIMENT}"])
    options = [option for override in chosen for option in _options(override)]
    with told():
        files = {option: _first(folders, f"{EXPERIMENT}/{option}.yaml") for option in options}
        elsewhere = [option for option, file in files.items() if not _GLOBAL.match(file.read_text())]
    why = "its file must begin with the line '# @package _global_', so that its keys are those of the run"
    if elsewhere:
        raise ConfigError([f"{EXPERIMENT}={option}: {why}" for option in elsewhere])


def _first(folders: Sequence[Path], name: str) -> Path:
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


_GLOBAL: Final = re.compile(r"(\s*#\s*@.*\n)*?\s*#\s*@package\s+_global_\s")
"""How Hydra is told so; it reads no further than to the first line that is not for it."""


def check_single(parsed: Sequence[Override]) -> None:
    """Raise ConfigError naming every override that gives several values, which only a sweep has."""
    swept = [str(override.input_line) for override in parsed if override.is_sweep_override()]
    told = "gives several values: to sweep over them, add --multirun (-m)"
    texts = {text: as_text(text) for text in swept}
    if swept:
        raise ConfigError([f"{text} {told}{f'; as one text: {one}' if one else ''}" for text, one in texts.items()])


def _check_hydra(override: Override, launchers: list[str]) -> Iterator[str]:
    """Yield problems of Hydra's own keys; users set the launcher only."""
    name, text = str(override.key_or_group), override.input_line
    options = [f"hydra.launcher.{item}" for item in LAUNCHER_OPTIONS]
    if name not in (LAUNCHER, *options):
        allowed = suggest(name, [LAUNCHER, *options])
        yield f"{text} would be ignored: of Hydra's own keys only the launcher's and hydra.searchpath count; {allowed}"
    elif override.is_delete() or override.is_sweep_override():
        yield f"{text}: a sweep has one launcher; give {name} one value"
    elif name == LAUNCHER and override.value() not in launchers:
        yield f"{text}: unknown launcher: {suggest(str(override.value()), launchers)}"


@cache
def known_keys() -> list[str]:
    """Return every dotted key, those of nodes included."""
    found = dict.fromkeys(flatten(Config()))
    for key in list(found):
        parts = key.split(".")
        found |= dict.fromkeys(".".join(parts[:i]) for i in range(1, len(parts)))
    return list(found)


def _taken_for_a_key(override: Override, keys: Sequence[str]) -> list[str]:
    """Return the keys at a place that has keys and is given a value of its own, such as ``sparsity.drop=random``."""
    is_plain = all(isinstance(option, str | int | float) and "${" not in str(option) for option in _options(override))
    return [key for key in keys if is_plain and key.rpartition(".")[0] == override.key_or_group]


def _siblings(name: str, keys: Sequence[str]) -> list[str]:
    """Return the keys at the same place as a dotted name that does not exist, if the place exists."""
    parent = name.rpartition(".")[0]
    return [key for key in keys if parent and key.rpartition(".")[0] == parent]


# ---------------------------------------------------------------------------------------------------------------------
# What Hydra says


@contextmanager
def told(before: str = "") -> Iterator[None]:
    """Let whatever Hydra and OmegaConf raise, bare AssertionErrors and ValueErrors too, become a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = f"a file of the config cannot be read: {' '.join(str(error).split())}"
        raise ConfigError([before + reason]) from error
    except Exception as error:
        raise ConfigError([before + _explain(error)]) from error


def _explain(error: BaseException) -> str:
    """Return what Hydra and OmegaConf say of a failure, without their decoration."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip().rstrip(".") for line in str(cause).splitlines() if line.strip()]
        parts += [line for line in lines if not line.startswith(("reference_type", "object_type", "provider="))]
        cause = cause.__cause__
    told = "; ".join(dict.fromkeys(part.replace("full_key: ", "at key ") for part in parts)) or repr(error)
    told = told.removeprefix("Error merging override ").replace("; ", ": ", 1)
    return told + replaced(*re.findall(r"at key ([\w.]+)", told))
