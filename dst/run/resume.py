"""The record of a run at its beginning: what is frozen into it, and whether the run can be continued."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dst.config.compose import to_yaml
from dst.config.identity import SCHEMA_VERSION, id_of, identity, run_name
from dst.config.schema import Config, ConfigError, flatten
from dst.files import of_another, sha256
from dst.options import shown
from dst.records.entries import Entry, entry_path, write_entry
from dst.records.lock import LockedError, locked
from dst.records.provenance import code_version, library_versions, machine
from dst.records.read import read_bytes, read_launch, read_run, read_status
from dst.records.same import attempt_of, called
from dst.records.states import State
from dst.records.store import Record, RecordError
from dst.run.environment import JOB
from dst.run.verified import changed_file
from dst.words import one_line

if TYPE_CHECKING:
    from dst.data.dataset import Dataset


def enter(config: Config, identifier: str, name: str, found: Path, command: str) -> None:
    """Write an entry for a run into its group, if it was begun under another group.

    Raises ConfigError if it cannot be written.
    """
    root = Path(config.output.root)
    group = root / config.output.group
    if found.is_relative_to(group):
        return
    _check_group(config)
    entry = Entry(identifier, name, found, command, os.getcwd())
    try:
        write_entry(entry_path(group, entry.id), entry, root=root)
    except OSError as error:
        raise ConfigError([f"output.group={config.output.group}: cannot write there: {error}"]) from error


def _check_group(config: Config) -> None:
    """Raise ConfigError if a group's folder would lie inside a run folder."""
    folder = Path(config.output.root) / config.output.group
    for above in (folder, *folder.parents):
        if os.path.exists(above / "run.json"):  # not if it cannot be read, which is said when it is written to
            raise ConfigError([f"output.group={config.output.group}: {above} is a run, not a group of runs"])


def create(
    config: Config,
    changed: Mapping[str, Any],
    identity: Mapping[str, Any],
    text: str,
    command: str,
    superseded: Path | None = None,
    *,
    swept: Mapping[str, str] = MappingProxyType({}),
    durable: bool = True,
) -> Record:
    """Make the record of a new run: its frozen config, and what is known about it before it begins.

    ``changed``: what was changed in the method. ``identity`` and ``text``: those of the frozen config; a caller that
    makes many records has them already.
    ``superseded``: the run's newest attempt folder so far; the next one is made beside it. ``swept``: what the command
    varies, key or group -> its value here.
    Raises ConfigError if the record cannot be made there.
    """
    root, run = Path(config.output.root), id_of(identity)
    attempt = 1 if superseded is None else attempt_of(superseded, run) + 1
    group = root / config.output.group
    while attempt > 1 and os.path.lexists(group / f"{run}.{attempt}"):  # a copy, which is no attempt of its own
        attempt += 1
    folder = group / (run if attempt == 1 else f"{run}.{attempt}")
    _check_group(config)
    given = {"command": command, "cwd": os.getcwd(), "root": os.path.abspath(root), "attempt_folder": attempt}
    given |= {"config_digest": sha256(text), "code": code_version()}
    about = {**_known(config, changed, identity), **({"swept": dict(swept)} if swept else {}), **given}
    try:
        return Record.create(folder, config_yaml=text, run=about, durable=durable)
    except RecordError:
        if not (folder / "run.json").exists():
            raise
        return Record.open(folder, durable=durable)  # of another start of the same run: its lock says whose it is
    except OSError as error:
        told = f"output.root={config.output.root}: cannot write a record there: {error}{of_another(folder, error)}"
        raise ConfigError([told]) from error


def frozen(config: Config) -> Config:
    """Return the config as it is frozen: without ``never`` of ``output.resume``; the folder is chosen by then."""
    resume = "auto" if config.output.resume == "never" else config.output.resume
    return replace(config, output=replace(config.output, resume=resume))


def refreeze(record: Record, config: Config, changed: Mapping[str, Any]) -> str:
    """Make this config the frozen config of a record, and return its text.

    A continued run may have new values of keys that cannot change its result (where it runs, how it is tracked, what it
    is called). ``changed``: what was changed in the method.
    """
    text, path = to_yaml(frozen(config)), record.folder / "config.yaml"
    if _text(path) != text:
        record.write_config(text)
    about = read_run(record.folder)
    named = {"name": run_name(config, changed, about.get("identity", {})), "changed": dict(changed)}
    new = {**about, **named, "config": flatten(frozen(config)), "config_digest": sha256(text)}
    if "dataset" not in about:  # it has not begun
        new["code"] = code_version()
    if new != about:
        record.write_run(new)
    return text


def check_unchanged(folder: Path, config: Config) -> None:
    """Raise ConfigError if the frozen config of a run was changed by hand before the run is continued.

    A missing file is written again. A file with the new config is right: its writer was killed just after writing it.
    """
    path = folder / "config.yaml"
    try:
        found = sha256(read_bytes(path))
    except FileNotFoundError:
        return
    recorded = read_run(folder).get("config_digest")
    if found != recorded and found != sha256(to_yaml(frozen(config))):
        raise ConfigError([changed_file(path, found, recorded, "recorded in run.json")])


def _text(path: Path) -> str | None:
    """Return the text of a file; None if there is no such file, or if it is not text."""
    try:
        return read_bytes(path).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _known(config: Config, changed: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``run.json`` says about a run before it begins."""
    return {
        "schema": SCHEMA_VERSION,
        "id": id_of(identity),
        "name": run_name(config, changed, identity),
        "changed": dict(changed),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "identity": identity,
        "config": flatten(frozen(config)),
        "determinism": config.hardware.determinism,
    }


def found_here(
    device: str,
    dataset: "Dataset",
    sources: Mapping[str, str],
    outside: Mapping[str, int],
    repair: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what ``run.json`` says about where and with what a run begins.

    ``outside``: the parameters outside the scope (dense, in no density), with their numbers of weights. ``repair``:
    what was mended in the first masks, by layer, if it was asked for.
    """
    return {
        "code": code_version(),
        "versions": library_versions(),
        **machine(),
        "device": device,
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "sources": dict(sources),
        "outside": dict(outside),
        **({} if repair is None else {"repair": dict(repair)}),
    }


def check_continuable(folder: Path, config: Config, *, code: str | None = None) -> None:
    """Raise ConfigError, or warn, if a run that has begun could not be continued where it is submitted.

    This is judged here, without its data and its device. ``code``: the digest of the code that will continue it, if not
    this code.
    """
    about = read_run(folder)
    if "dataset" in about:
        _check_complete(folder, about)
        _check_reliable(folder, about, config)
        by = code_version() if code is None else {"digest": code, "git": None}
        _check_same(folder, about, {"code": by, "versions": library_versions()}, strict=_is_strict(config))


class RunningError(ConfigError):
    """Another process carries out the run."""


class CancelledError(ConfigError):
    """A run was cancelled, or given to another job, before this job began it."""


def check_wanted(folder: Path) -> None:
    """Raise CancelledError if this process belongs to a job that shall not carry out a run any more."""
    job = os.environ.get(JOB)
    if job is None:
        return
    try:
        status, launch = read_status(folder) or {}, read_launch(folder) or {}
    except RecordError:  # what is damaged is told elsewhere
        return
    if status.get("state") == State.CANCELLED:
        raise CancelledError([f"run {folder.name} was cancelled"])
    if launch.get("job") not in (None, job):
        raise CancelledError([f"run {folder.name} was given to job {launch['job']}"])


@contextmanager
def locked_record(
    record: Record, config: Config, changed: Mapping[str, Any], facts: Mapping[str, Any]
) -> Iterator[None]:
    """Lock the record and write down where the run starts (``facts``).

    Raises RunningError if another process holds it, CancelledError if it is no longer for this job, ConfigError if the
    run cannot be continued as it was begun.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(record.folder, os.environ.get(JOB)))
        except LockedError as error:
            raise RunningError([str(error)]) from error
        except OSError as error:
            name = one_line(record.folder.name)
            told = f"run {name} cannot be locked: {error}{of_another(record.folder / 'lock', error)}"
            raise ConfigError([told]) from error
        record.fence = lock.check
        stack.enter_context(record)
        check_wanted(record.folder)
        _check_own(record.folder, config)
        check_unchanged(record.folder, config)
        _begin_or_continue(record, facts, config)
        refreeze(record, config, changed)
        yield


def _is_strict(config: Config) -> bool:
    return config.hardware.determinism == "strict"


def _begin_or_continue(record: Record, facts: Mapping[str, Any], config: Config) -> None:
    """Record what the run begins with, or check that it continues with the same."""
    about, strict = read_run(record.folder), _is_strict(config)
    if "dataset" in about:
        _check_reliable(record.folder, about, config)
        return _check_continuation(record.folder, about, facts, strict=strict)
    # What a run begins with is recorded before its first checkpoint.
    if "code" not in about or record.checkpoints.is_dir():
        raise ConfigError([_INCOMPLETE.format(record.folder)])
    _check_same(record.folder, about, {"code": facts["code"]}, strict=strict)
    return record.write_run({**about, **facts, "code": about["code"]})


def _check_own(folder: Path, config: Config) -> None:
    """Raise ConfigError unless ``run.json`` belongs to this run."""
    own = identity(config)
    about, wanted = read_run(folder), json.loads(json.dumps({"id": id_of(own), "identity": own}))
    if not wanted.keys() <= about.keys():
        raise ConfigError([_INCOMPLETE.format(folder)])
    for name, value in wanted.items():
        if about[name] != value:
            told = f"{folder}/run.json says {name}: {about[name]}, but this run has {value}"
            raise ConfigError([f"{told}: it was changed; restore it, or {_ALONE}"])


def _check_continuation(folder: Path, begun: Mapping[str, Any], facts: Mapping[str, Any], *, strict: bool) -> None:
    """Raise ConfigError if the data, or in strict mode the code or a library, differs from the run's beginning."""
    _check_complete(folder, begun)
    name = called(folder, begun)
    if begun["dataset"] != facts["dataset"]:
        raise ConfigError(
            [f"run {name} was begun with other data ({begun['dataset']}, now {facts['dataset']}); {_ANEW}"]
        )
    if begun.get("sources", {}) != facts["sources"]:
        raise ConfigError([f"run {name} was begun from other checkpoints ({begun.get('sources')}); {_ANEW}"])
    _check_same(folder, begun, facts, strict=strict)


def _check_reliable(folder: Path, begun: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError if reliable weights are to be counted from now on, which needs what nobody has kept so far."""
    key, wanted = "tracking.reliable_steps", config.tracking.reliable_steps
    so_far = begun.get("config", {}).get(key)
    if wanted not in (None, so_far) and (folder / "checkpoints").is_dir():
        raise ConfigError(
            [
                f"{key}={wanted}: run {called(folder, begun)} has trained with {key}={shown(so_far)} so far, so that "
                f"its checkpoints do not tell for how long weights have been active; give that, or {_ALONE}"
            ]
        )


def _check_complete(folder: Path, begun: Mapping[str, Any]) -> None:
    """Raise ConfigError unless it is recorded with what a run was begun."""
    if not {"dataset", "code", "versions", "device"} <= begun.keys():
        raise ConfigError([_INCOMPLETE.format(folder)])


def _check_same(folder: Path, begun: Mapping[str, Any], facts: Mapping[str, Any], *, strict: bool) -> None:
    """Raise ConfigError (strict mode) or warn if code, device or libraries have changed since the run was begun."""
    changes = []
    if begun["code"]["digest"] != facts["code"]["digest"]:
        changes.append(f"the code (was {_code(begun)}, is {_code(facts)})")
    if "device" in facts and begun["device"] != facts["device"]:
        changes.append(f"the device (was {begun['device']}, is {facts['device']})")
    for name, version in facts.get("versions", {}).items():
        if begun["versions"].get(name) != version:
            changes.append(f"{name} (was {begun['versions'].get(name)}, is {version})")
    told = ", ".join(changes)
    if changes and strict:
        raise ConfigError(
            [f"run {called(folder, begun)} in {folder} cannot be continued bit-identically: changed {told}; {_ANEW}"]
        )
    if changes:
        print(f"warning: continuing run {called(folder, begun)} with changed {told}", file=sys.stderr)


_ALONE = "start it anew by a command for it alone, with output.resume=never"
_INCOMPLETE = f"{{}}/run.json is incomplete: restore it, or {_ALONE}"
_ANEW = f"go back to what it was begun with, or {_ALONE}"


def _code(about: Mapping[str, Any]) -> str:
    commit = about["code"].get("git")
    return f"{about['code']['digest']}{f' at commit {commit[:10]}' if commit else ''}"
