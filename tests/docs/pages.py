"""The pages, and what stands in their code blocks: commands, and what they need; Python; what is shown besides."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.processes import REPOSITORY

PATTERNS = ("*.md", "docs/*.md", "conf/*/*.md", "experiments/**/*.md")
PAGES = sorted({path.resolve() for pattern in PATTERNS for path in REPOSITORY.glob(pattern)})
"""Each once: conf/experiment is a link to experiments."""
SHELL, PYTHON = {"", "sh", "bash"}, {"python"}
SHOWN = {"text", "yaml", "csv", "toml", "bibtex", "latex", "html", "json"}
"""Languages of code blocks: of commands, of snippets that run, of all that is only looked at."""

MARKS = (
    *("needs a GPU", "needs several GPUs", "needs SLURM", "needs data", "needs wandb", "needs Chromium", "needs LaTeX"),
    "downloads",
)
"""What a command says behind its ``#`` that needs more than two cores of a CPU; docs/README.md explains them."""

_FENCE = re.compile(r"^ {0,6}```(\S*)[^\n]*\n(.*?)^ {0,6}```\s*$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command of a page; ``shown``: the lines that the page shows of what it prints."""

    page: str
    text: str
    comment: str
    shown: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_marked(self) -> bool:
        """Say whether it tells that it needs more than is here."""
        return any(mark in self.comment for mark in MARKS)

    @property
    def is_run(self) -> bool:
        """Say whether it is ``run.py``, whose configs are composed wherever they could run."""
        return re.match(r"(python|torchrun .*|%run) ?run\.py\b|(python|torchrun .*) run\.py\b", self.text) is not None


def name(path: Path) -> str:
    """Return a page's path in the repository."""
    return path.relative_to(REPOSITORY).as_posix()


@cache
def read(page: str) -> str:
    """Return a page's text, by its path in the repository."""
    return (REPOSITORY / page).read_text()


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and content of each code block of a page."""
    return _FENCE.findall(read(page))


def snippets(page: str) -> list[str]:
    """Return the Python of a page, in its order."""
    return [content for language, content in blocks(page) if language in PYTHON]


def commands(page: str) -> list[Command]:
    """Return the commands of a page, in its order."""
    return [command for language, content in blocks(page) if language in SHELL for command in _commands(page, content)]


def _commands(page: str, content: str) -> list[Command]:
    """Return those of a block: its lines that begin with ``$``, the others being what is shown; or else all lines."""
    lines = re.sub(r"\\\n\s*", " ", content).splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return [_command(page, line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    parts = [lines[start:stop] for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return [_command(page, first.removeprefix("$ "), rest) for first, *rest in parts]


def _command(page: str, line: str, shown: list[str] | None = None) -> Command:
    text, _, comment = line.strip().partition(" # ")
    return Command(page, text.strip(), comment.strip(), tuple(shown or ()))


def listed() -> list[str]:
    """Return the files that a clean clone has: those that git follows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [file for file in found.split("\0") if file and os.path.lexists(REPOSITORY / file)]


def clone(folder: Path) -> Path:
    """Copy into a folder what a clean clone of the repository has; return the folder."""
    for file in listed():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / file, target, follow_symlinks=False)
    return folder
