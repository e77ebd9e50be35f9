"""A run as it was submitted: its resolved config, in its folder and in its job, and the code that runs it."""

import os
import shutil
import tempfile
from pathlib import Path

from dst.config.identity import run_name
from dst.config.schema import Config, ConfigError
from dst.files import sha256
from dst.launcher.job import FrozenRun
from dst.records.provenance import PACKAGE, code_digest, code_version, passed_over
from dst.records.read import read_launch, read_run
from dst.records.restate import restate
from dst.records.states import State
from dst.records.store import RecordError
from dst.records.swept import recorded_name
from dst.run.cell import Cell
from dst.run.environment import CODE, FROZEN
from dst.run.resume import refreeze
from dst.run.verified import frozen_config


def freeze(cell: Cell, command: str) -> FrozenRun:
    """Write a cell's config into its run folder, new or existing, and mark the run as being submitted.

    This does not wait for the disk: after all cells of a sweep are frozen, the caller calls ``os.sync`` once.
    """
    is_new = cell.state == State.NEW
    record = cell.record(command, durable=False)
    text = cell.text if is_new else refreeze(record, cell.config, cell.changed)
    _mark_submitting(record.folder)
    return FrozenRun(str(record.folder.resolve()), cell.title, sha256(text), text)


def read_frozen(folder: Path) -> tuple[FrozenRun, Config]:
    """Return a frozen run and its config; ConfigError if the config is not the recorded one."""
    config, text = frozen_config(folder), (folder / "config.yaml").read_text()
    about = read_run(folder)
    name = run_name(config, about.get("changed", {}), about.get("identity", {}))
    named = recorded_name({**about, "name": name}, name)
    return FrozenRun(str(folder.resolve()), named, sha256(text), text), config


def freeze_again(run: FrozenRun, config: Config) -> tuple[FrozenRun, Config]:
    """Mark a frozen run as being submitted again, and return it; everything else stays as it was submitted."""
    _mark_submitting(Path(run.folder))
    return run, config


def _mark_submitting(folder: Path) -> None:
    """Record that a run is being submitted; RecordError if a process has begun to carry it out."""
    if not restate(folder, State.SUBMITTING, durable=False):
        raise RecordError("a process has begun to carry it out")


def submitted_code(folder: Path) -> Path:
    """Return the folder of the package with which a run was submitted; ConfigError if it is gone."""
    launch = read_launch(folder) or {}
    begun = read_run(folder).get("code", {}).get("digest")
    version = Path(launch["code"]).name if launch.get("code") else str(begun)
    for above in (*folder.absolute().parents, *folder.resolve().parents):  # its group may be a link to another disk
        if (above / FROZEN / version / PACKAGE.name).is_dir():
            return above / FROZEN / version
    raise ConfigError(
        [f"the code {version} with which it was submitted is in no {FROZEN} above {folder}: give its command again"]
    )


def frozen_code(root: Path) -> Path:
    """Copy the package to a folder below ``root``, once for each version of it, and return that folder.

    A queued job imports this copy, so it runs the code with which it was submitted, even if the package is edited or
    another version is checked out. Raises ConfigError if the code has changed since this process began, or if the copy
    has changed since it was made.
    """
    version = code_version()["digest"]
    copy = root.resolve() / FROZEN / str(version)
    if not (copy / PACKAGE.name).is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".partial-"))
        shutil.copytree(PACKAGE, partial / PACKAGE.name, ignore=passed_over)
        partial.chmod(0o755)
        if code_digest(partial / PACKAGE.name) != version:
            shutil.rmtree(partial)
            raise ConfigError([f"the code in {PACKAGE} was changed while it was being submitted: submit again"])
        try:
            os.rename(partial, copy)
        except OSError:  # another submission was faster
            shutil.rmtree(partial)
    check_copy(copy)
    return copy


def check_copy(copy: Path) -> None:
    """Raise ConfigError unless a folder below ``.code`` holds exactly the code whose digest is its name."""
    beside = sorted(path.name for path in copy.iterdir() if path.name != PACKAGE.name)  # jobs would import it too
    found = code_digest(copy / PACKAGE.name)
    if beside or found != copy.name:
        told = f"has {', '.join(beside)} beside the package" if beside else f"has the digest {found}"
        raise ConfigError([_not_as_submitted(copy, told)])


def check_code() -> None:
    """Raise ConfigError if this process has imported other code than the one with which its job was submitted.

    This costs nothing extra: each process takes the digest once, and records need it anyway.
    """
    submitted, found = os.environ.get(CODE), code_version()["digest"]
    if submitted is not None and submitted != found:
        told = f"has the digest {found}, and the job was submitted with {submitted}"
        raise ConfigError([_not_as_submitted(PACKAGE, told)])


def _not_as_submitted(folder: Path, told: str) -> str:
    """Return the message about changed code. It removes one copy only: the others belong to other jobs."""
    copy = next((path for path in (folder, folder.parent) if path.parent.name == FROZEN), None)
    remove = "" if copy is None else f"cancel the jobs that use it, remove {copy} alone, and "
    return (
        f"the code in {folder} is not what was submitted: it {told}. It was changed: restore it; or "
        f"{remove}submit again with the same command"
    )
