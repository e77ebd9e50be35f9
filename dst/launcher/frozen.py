"""A run as it was submitted: its own resolved config in its folder and in its job, and the code to run it with."""

import os
import shutil
import tempfile
from pathlib import Path

from dst.app import Cell
from dst.config import ConfigError, run_name
from dst.environment import CODE
from dst.launcher.job import FrozenRun
from dst.recording import digest, refreeze
from dst.records.provenance import PACKAGE, code_digest, code_version
from dst.records.read import read_status


def freeze(cell: Cell, command: str) -> FrozenRun:
    """Put a cell's config into its run folder, new or to be continued, and mark the run as queued.

    Nothing waits for the disk: whoever has frozen all cells of a sweep calls ``os.sync`` once.
    """
    is_new = cell.state == "new"
    record = cell.record(command, durable=False)
    text = cell.text if is_new else refreeze(record, cell.config)
    before = read_status(record.folder) or {}
    record.write_status(
        "queued",
        attempt=before.get("attempt", 0),
        step=before.get("step", 0),
        total_steps=before.get("total_steps"),
    )
    return FrozenRun(str(record.folder.resolve()), run_name(cell.config), digest(text), text)


def frozen_code(root: Path) -> Path:
    """Copy the package below ``root``, once for each version of it, and return the folder to import it from.

    So a queued job runs the code that it was submitted with, whatever is edited or checked out meanwhile. Raises
    ConfigError if the code has changed since this process began, or the copy since it was made.
    """
    version = code_version()["digest"]
    place = root.resolve() / ".code" / str(version)
    if not (place / PACKAGE.name).is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=".partial-"))
        shutil.copytree(PACKAGE, partial / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        partial.chmod(0o755)
        if code_digest(partial / PACKAGE.name) != version:
            shutil.rmtree(partial)
            raise ConfigError([f"the code in {PACKAGE} was changed while it was being submitted: submit again"])
        try:
            os.rename(partial, place)
        except OSError:  # another submission was faster
            shutil.rmtree(partial)
    check_copy(place)
    return place


def check_copy(place: Path) -> None:
    """Raise ConfigError unless a folder below ``.code`` holds the code that it is named after, and nothing else."""
    beside = sorted(path.name for path in place.iterdir() if path.name != PACKAGE.name)  # jobs would import it too
    found = code_digest(place / PACKAGE.name)
    if beside or found != place.name:
        told = f"has {', '.join(beside)} beside the package" if beside else f"has the digest {found}"
        raise ConfigError([_not_as_submitted(place, told)])


def check_code() -> None:
    """Raise ConfigError if this process of a job imports another code than that which the job was submitted with.

    Costs nothing that the record of a run would not cost: the digest is looked at once a process.
    """
    submitted, found = os.environ.get(CODE), code_version()["digest"]
    if submitted is not None and submitted != found:
        told = f"has the digest {found}, and the job was submitted with {submitted}"
        raise ConfigError([_not_as_submitted(PACKAGE, told)])


def _not_as_submitted(place: Path, told: str) -> str:
    return (
        f"the code in {place} is not what was submitted: it {told}. Somebody changed it: restore it, or remove "
        "output.root/.code, and submit again by the same command"
    )
