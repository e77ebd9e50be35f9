"""From a published command line to ours: what it means, and the command and notes that say so."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dst.legacy import er, granet, itop, others, shuffled, sup_tickets, tickets
from dst.legacy.plan import Call, Plan, direct
from dst.legacy.recognise import Recognised, recognise
from dst.legacy.tables import IGNORED, MAPS, NONE, Option
from dst.legacy.words import Line, read
from dst.legacy.write import is_group, overrides

Recipe = Callable[[Call, Plan], None]

_RECIPES: Final[Mapping[str, Recipe]] = {
    **{"itop_cifar": itop.cifar, "itop_imagenet": itop.imagenet, "a_bsr_net": others.a_bsr_net},
    **{"granet_cifar": granet.cifar, "granet_imagenet": granet.imagenet, "er_dst": granet.er_dst},
    **{"sup_tickets_cifar": sup_tickets.cifar, "sup_tickets_imagenet": sup_tickets.imagenet},
    **{"shuffled_cifar": shuffled.cifar, "shuffled_imagenet": shuffled.imagenet},
    **{"str": er.run, "er_slt": tickets.er_slt},
}

_COMPLETED: Final[Mapping[str, Callable[[Recognised], Recognised]]] = {"str": er.completed}
"""What adds to a command line what its program has besides: a config."""


@dataclass(frozen=True)
class Translation:
    """Our command for a published one. ``overrides``: of the run; ``paper``: whose command it was; ``notes``: on it."""

    overrides: list[str]
    paper: str
    title: str
    line: Line
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The words of our command."""
        start = ["python", "run.py"]
        if self.line.processes and self.line.processes > 1:
            start = ["torchrun", "--nproc-per-node", str(self.line.processes), *self.line.launcher, "run.py"]
        return [*self.line.variables, *start, *self.overrides]


def translate(command: str, conf: Path, *, source: str | None = None, as_run: bool = False) -> Translation:
    """Return our command for one that starts a published program; LegacyError, or ConfigError if its run is invalid."""
    line = read(command)
    if line.target is not None:
        plan = others.made(line, as_run=as_run)
        return Translation(overrides(conf, plan), "agent", "AGENT's A-RigL (make)", line, _remarks(plan))
    if line.script.endswith(".ipynb"):
        plan = others.notebook(line)
        return Translation(overrides(conf, plan), "random_pruning", "tabular.ipynb", line, _remarks(plan))
    found = recognise(line, source)
    found = _COMPLETED[found.program.name](found) if found.program.name in _COMPLETED else found
    call = Call(found, as_run)
    plan = direct(call)
    _RECIPES[found.program.name](call, plan)
    written = overrides(conf, plan)
    notes = [*_remarks(plan), *_options(call, written)]
    return Translation(written, found.paper, found.program.title, line, notes)


def _remarks(plan: Plan) -> list[tuple[str, str]]:
    return [*(("read", text) for text in plan.said), *(("not reproduced", text) for text in plan.missed)]


def _options(call: Call, written: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what is to be said about single options."""
    for option in call.program.options:
        is_forced = call.as_run and bool(option.as_run)
        if call.has(option.name) and option.named == "readme":
            yield from _of_readme(call, option)
        elif call.has(option.name) and (option.becomes == IGNORED or is_forced):
            yield "ignored by the published code", f"{_shown(call, option)}: {option.meaning}"
        elif call.has(option.name) and option.becomes == NONE:
            yield "no equivalent", f"{_shown(call, option)}: {option.meaning}"
    yield from _defaults(call, written)
    known = {key for option in call.program.options for key in option.keys}
    rest = [text for text in written if not is_group(text.partition("=")[0]) and text.partition("=")[0] not in known]
    if rest:
        yield "of the published program, without an option", " ".join(rest)


def _of_readme(call: Call, option: Option) -> Iterator[tuple[str, str]]:
    spelled = {word.partition("=")[0] for word in call.found.line.words}
    if option.option in spelled:
        yield "refused by the published parser", f"{option.option}: {option.meaning}"


def _defaults(call: Call, written: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the published defaults of options that are not given, where ours differ and are written out."""
    keys = {text.partition("=")[0]: text for text in written if not is_group(text.partition("=")[0])}
    for option in call.program.options:
        hit = [keys[key] for key in option.keys if key in keys]
        if hit and not call.has(option.name) and option.becomes == MAPS and option.default:
            yield "default of the published parser", f"{option.option} {option.default}, so {' '.join(hit)}"


def _shown(call: Call, option: Option) -> str:
    value = call.found.given.values[option.name]
    return option.option if option.kind == "flag" else f"{option.option} {value}"


def text(translation: Translation, same_as: str | None = None) -> str:
    """Return the command, ready to be pasted, and below it the notes, as comments of the shell."""
    lines = [_wrapped(translation.words), f"# read as {translation.title}"]
    if same_as:
        lines.append(f"# the same run as {same_as}")
    lines += [f"# {kind}: {told}" for kind, told in translation.notes]
    if not any(text.startswith("hardware") for text in translation.overrides):
        lines.append("# it trains on the CPU as it stands: add hardware=gpu for a GPU")
    return "\n".join(" ".join(line.splitlines()) if line.startswith("#") else line for line in lines)


def _wrapped(words: list[str], width: int = 110) -> str:
    """Return words as lines of shell that are one command."""
    lines = [""]
    for word in words:
        quoted = _quoted(word)
        if lines[-1] and len(lines[-1]) + len(quoted) + 1 > width:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {quoted}" if lines[-1] else quoted
    return " \\\n".join(lines)


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    is_plain = equals and name.replace(".", "").replace("_", "").replace("+", "").isalnum()
    return f"{name}={shlex.quote(value)}" if is_plain and value else shlex.quote(word)
