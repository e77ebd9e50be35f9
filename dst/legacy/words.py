"""A line of shell as people copy it from a README: what program it starts, how, and with which words."""

import re
import shlex
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Final

from dst.legacy.tables import LegacyError

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_LEFTOVER: Final = re.compile(r"\$\{?\d\}?")
"""Positional variables of a shell, which stand in some READMEs and are empty."""
_PYTHON: Final = re.compile(r"(.*/)?python(\d(\.\d+)?)?")
_REDIRECTION: Final = re.compile(r"""(?x)\s(\d?>&\d | &?\d?>>?\s*[^\s"']+ | \|\s*tee\s[^;&|]*)(?=\s|$)""")
_LAUNCHERS: Final = ("multiproc.py", "torchrun", "torch.distributed.launch", "torch.distributed.run")
_OF_LAUNCHERS: Final = ("nnodes", "node_rank", "nproc_per_node", "master_addr", "master_port")
_SEPARATORS: Final = ("&&", ";", "&")


@dataclass(frozen=True)
class Line:
    """What a line starts: ``script`` with ``words``, in ``folder``, with variables and as many processes.

    ``launcher``: what was said to the launcher besides. ``target``: what ``make`` is to make, instead of a script.
    """

    script: str = ""
    words: tuple[str, ...] = ()
    folder: str = ""
    variables: tuple[str, ...] = ()
    processes: int | None = None
    launcher: tuple[str, ...] = ()
    target: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


def read(text: str) -> Line:
    """Return what a line of shell starts; LegacyError if that is not one program."""
    folder = ""
    variables: list[str] = []
    started: list[Line] = []
    for words in _commands(text):
        own = list(takewhile(_ASSIGNMENT.match, words))
        variables += own
        match words[len(own) :]:
            case []:
                pass
            case ["export", *assigned]:
                variables += assigned
            case ["cd", *rest]:
                folder = rest[0] if rest else ""
            case rest:
                started.append(replace(_started(rest), folder=folder, variables=tuple(variables)))
    if len(started) != 1:
        told = f"starts {len(started)} programs" if started else "starts no program"
        raise LegacyError(f"the command {told}: give one command of a README, in quotes")
    return started[0]


def _commands(text: str) -> list[list[str]]:
    """Return the words of each command of a line, without leftovers and redirections."""
    joined = _REDIRECTION.sub(" ", re.sub(r"\\\r?\n", " ", text).replace("\n", " ; "))
    lexer = shlex.shlex(joined, posix=True, punctuation_chars="&;")
    lexer.whitespace_split, lexer.commenters = True, ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word in _SEPARATORS:
                commands.append([])
            elif (rest := _LEFTOVER.sub("", word)) or not word:
                commands[-1].append(rest)
    except ValueError as error:
        raise LegacyError(f"the command cannot be read: {str(error).lower()}") from error
    return [words for words in commands if words]


def _started(words: list[str]) -> Line:
    """Return what one command starts."""
    if words[0] == "make":
        settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        if len(targets) != 1:
            raise LegacyError(f"{shlex.join(words)}: name one target, e.g. make cifar10.ERK.RigL DENSITY=0.2")
        return Line(target=targets[0], settings=settings)
    if _PYTHON.fullmatch(words[0]):
        words = words[1:]
        while words and words[0] in ("-u", "-B", "-m"):
            words = words[1:]
    script = PurePosixPath(words[0]).name if words else ""
    if script in _LAUNCHERS:
        return _launched(words[1:])
    if not script.endswith((".py", ".ipynb")):
        raise LegacyError(f"{shlex.join(words) or 'python'}: this starts no Python program, such as main.py")
    return Line(script, tuple(words[1:]))


def _launched(words: list[str]) -> Line:
    """Return what a launcher starts in several processes."""
    processes, said = 1, []
    while words and words[0].startswith("--"):
        name, equals, value = words[0][2:].partition("=")
        words = words[1:]
        if name.replace("-", "_") not in _OF_LAUNCHERS:
            raise LegacyError(f"--{name} is no option of the launcher: allowed: {', '.join(_OF_LAUNCHERS)}")
        if not equals:
            value, words = (words or [""])[0], words[1:]
        if name.replace("-", "_") != "nproc_per_node":
            said.append(f"--{name.replace('_', '-')}={value}")
        elif not value.isdigit() or int(value) < 1:
            raise LegacyError(f"--{name} {value}: this is no number of processes")
        else:
            processes = int(value)
    return replace(_started(words or [""]), processes=processes, launcher=tuple(said))
