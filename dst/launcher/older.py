"""Runs of another schema: the code that they were submitted with submits them again, this one cannot."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dst.config.identity import SCHEMA_VERSION
from dst.config.schema import ConfigError
from dst.launcher.frozen import check_copy, submitted_code
from dst.launcher.request import imports
from dst.records.provenance import code_version
from dst.records.read import read_launch, read_run
from dst.records.same import called
from dst.run.verified import other_schema


def is_of_other_schema(folder: Path) -> bool:
    """Say whether a run has its id by another version of the schema than this code has."""
    return bool(read_run(folder).get("schema") != SCHEMA_VERSION)


def own_code(folder: Path) -> Path:
    """Return the folder of the code with which a run of another schema was submitted.

    Raises ConfigError, which names the schema, if it was never submitted, or that code is gone or is this code.
    """
    told = f"{folder} is left alone: {other_schema(read_run(folder).get('schema'))}"
    if read_launch(folder) is None:
        raise ConfigError([f"{told}; it was not submitted as a job, so there is no copy of that code"])
    try:
        code = submitted_code(folder)
    except ConfigError as error:
        raise ConfigError([f"{told}, and {problem}" for problem in error.problems]) from error
    if code.name == code_version()["digest"]:  # which would ask itself for ever
        raise ConfigError([f"{told}, and it was submitted with this very code: {folder}/run.json was changed"])
    return code


def requeue_by_own_code(folders: Sequence[Path], code: Path, options: Sequence[str]) -> int:
    """Let the code that runs were submitted with submit them again, all in one call; return its exit code.

    ``options``: of its ``dst.launcher.requeue``, which is given one folder that has links to those of the runs. Raises
    ConfigError if that code was changed.
    """
    check_copy(code)
    with tempfile.TemporaryDirectory() as place:
        names = [called(folder, read_run(folder)) for folder in folders]
        links = {Path(place, str(n), name): folder for n, (name, folder) in enumerate(zip(names, folders, strict=True))}
        for link, folder in links.items():
            link.parent.mkdir()
            link.symlink_to(folder.resolve())
        command = [sys.executable, "-m", "dst.launcher.requeue", *options, place]
        environment = {**os.environ, **imports(code)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"by the code {code.name}, with which they were submitted:")
    print(_named(done.stdout, links), end="", flush=True)
    print(_named(done.stderr, links), end="", file=sys.stderr, flush=True)
    return done.returncode


def _named(text: str, links: Mapping[Path, Path]) -> str:
    """Return a text with the folders of runs where it has the links to them."""
    for link, folder in links.items():
        text = text.replace(str(link), str(folder))
    return text
