"""Numbered checkpoints, written atomically, each with a digest and the id of its run; the newest valid one counts.

A checkpoint is ``step_<n>.pt`` (tensors and plain data only) and ``step_<n>.json``, its manifest, which is written
last: without it the checkpoint does not exist. Those of the phases after the first (which is phase 0) are named
``phase_<p>_step_<n>``: what ends a phase happens between two checkpoints of one step, and the later phase is the newer.
A checkpoint is damaged if its content differs from its manifest, not if it cannot be read at the moment. Damaged ones
are set aside as ``<name>.damaged``. Other files are left alone.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, Final

import torch

from dst.files import file_sha256, replacing
from dst.options import checked
from dst.training.options import Keep

FORMAT: Final = 1

_STEM: Final = r"(?P<stem>(?:phase_(?P<phase>\d{2,})_)?step_(?P<step>\d{9,}))"
_MANIFEST: Final = re.compile(rf"{_STEM}\.json")
_LEFTOVER: Final = re.compile(rf"{_STEM}\.(pt|json)\.tmp")
_DAMAGED: Final = re.compile(rf"{_STEM}\.(pt|json)\.damaged")
_KEPT_DAMAGED: Final = 2
"""How many damaged checkpoints are kept, the latest ones, so that one can find out what happened to them."""


class CheckpointError(RuntimeError):
    """A checkpoint that is intact but must not be used: it has another format, or is of another run."""


class UnreadableError(CheckpointError):
    """A checkpoint that cannot be read now, so that its content is unknown."""


class _DamagedError(ValueError):
    """A checkpoint whose content is not what was written."""


class Checkpoints:
    """The checkpoints of one run in ``folder``, of which the newest ``keep`` are kept.

    ``run``: the run's id, which its checkpoints carry. Without it, for reading only, those of any run are accepted. A
    checkpoint without an id, from an earlier version of this code, counts as the run's own; one without a phase is one
    of the first.
    """

    @checked
    def __init__(self, folder: Path, keep: Keep = 2, run: str | None = None) -> None:
        self.folder = folder
        self._keep = keep
        self._run = run

    def save(self, step: int, state: dict[str, Any], phase: int = 0) -> None:
        """Write a checkpoint unless this step of this phase has a valid one.

        ``step``: of the whole training, so that it grows with the phase. An OSError (disk full) leaves earlier
        checkpoints intact.

        The manifest is complete on the disk before the data gets its name. If the process is killed before the manifest
        gets its own name, the data is therefore known to be from this program.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.path(step, phase)
        manifest = data.with_suffix(".json")
        if self._is_saved(manifest):
            return
        needed = _bytes(state)
        with _writing(f"checkpoint {data}"), replacing(data, manifest, shared=False, needed=needed) as (file, beside):
            _dump(state, file)
            beside.write(json.dumps(self._description(step, phase, file)).encode())
        try:
            self._prune()
        except OSError as error:  # the next save tries again
            print(f"warning: an old checkpoint cannot be removed: {error}", file=sys.stderr)

    def _description(self, step: int, phase: int, file: BufferedRandom) -> dict[str, Any]:
        """Return the manifest of a checkpoint whose data has just been written to a file."""
        size = file.tell()
        file.seek(0)
        manifest = {"format": FORMAT, "phase": phase, "step": step, "bytes": size, "sha256": file_sha256(file)}
        return manifest if self._run is None else {**manifest, "run": self._run}

    def load_newest(self, map_location: str = "cpu") -> dict[str, Any] | None:
        """Return the state of the newest valid checkpoint, or None; damaged ones are set aside with a warning.

        Raises UnreadableError if one cannot be read now, CheckpointError if one is of another format or another run: to
        continue from an older one, or from the start, would throw away training that is not lost.
        """
        for manifest in self._manifests():
            try:
                with self._verified(manifest) as file:
                    state: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
                    return state
            except _DamagedError as error:
                print(f"warning: passing over checkpoint {manifest.stem}: {error}; set aside", file=sys.stderr)
                self._set_aside(manifest)
        return None

    def path(self, step: int, phase: int = 0) -> Path:
        """Return the file of the checkpoint of a step of a phase, whether it exists or not."""
        return self.folder / f"{_stem(step, phase)}.pt"

    def newest(self) -> Path | None:
        """Return the file of the newest valid checkpoint, without changing anything; None if there is none.

        Raises as ``load_newest`` does.
        """
        for manifest in self._manifests():
            try:
                with self._verified(manifest):
                    return manifest.with_suffix(".pt")
            except _DamagedError:
                continue
        return None

    # -- reading -------------------------------------------------------------------------------------------------------

    def with_digest(self, digest: str) -> Path | None:
        """Return the file of the checkpoint that was written with this digest, without changing anything."""
        for manifest in self._manifests():
            with suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(manifest.read_text())["sha256"] == digest:
                    return manifest.with_suffix(".pt")
        return None

    def _manifests(self) -> list[Path]:
        """Return the manifests, of the newest checkpoint first."""
        try:
            entries = list(os.scandir(self.folder))
        except FileNotFoundError as error:
            if self.folder.is_symlink():  # to a disk that is not mounted now
                raise UnreadableError(f"the checkpoints in {self.folder} cannot be read now ({error})") from error
            return []
        except OSError as error:
            raise UnreadableError(f"the checkpoints in {self.folder} cannot be read now ({error})") from error
        found = [match for entry in entries if (match := _MANIFEST.fullmatch(entry.name)) and not entry.is_dir()]
        return [self.folder / match[0] for match in sorted(found, key=_order, reverse=True)]

    @contextmanager
    def _verified(self, manifest: Path) -> Iterator[BufferedReader]:
        """Open the data of a checkpoint, at its beginning, once its digest has been compared with the manifest."""
        data = manifest.with_suffix(".pt")
        try:
            said = _said(manifest)
            self._check_own(data, said)
            try:
                file = data.open("rb")
            except FileNotFoundError as error:
                raise _DamagedError(f"{data.name} is missing") from error
            with file:
                size = os.fstat(file.fileno()).st_size
                if size != said["bytes"]:
                    raise _DamagedError(f"it has {size} bytes instead of {said['bytes']}")
                if file_sha256(file) != said["sha256"]:
                    raise _DamagedError("its content does not match its digest")
                file.seek(0)
                yield file
        except OSError as error:
            raise UnreadableError(
                f"checkpoint {data} cannot be read now ({error}); nothing was changed: run the same command again when "
                "it can be read, or move it away to continue without it"
            ) from error

    def _check_own(self, data: Path, said: dict[str, Any]) -> None:
        if said["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {data} has format {said['format']}, this code reads {FORMAT}; use the code that wrote it"
            )
        if not self._is_own(said):
            raise CheckpointError(
                f"checkpoint {data} is of run {said['run']}, not of run {self._run}: it was copied here. Move it away; "
                "to start from the weights or masks of another run, name its folder (weights=FOLDER or path=FOLDER)"
            )

    def _is_own(self, said: dict[str, Any]) -> bool:
        return self._run is None or said.get("run", self._run) == self._run

    def _is_saved(self, manifest: Path) -> bool:
        """Say whether there is a valid checkpoint already."""
        if not manifest.exists():
            return False
        try:
            with self._verified(manifest):
                return True
        except (_DamagedError, UnreadableError):
            return False

    # -- removing ------------------------------------------------------------------------------------------------------

    def _set_aside(self, manifest: Path) -> None:
        """Rename a damaged checkpoint, so that it is out of the way but not lost; keep only the latest of these."""
        for path in (manifest, manifest.with_suffix(".pt")):
            if path.exists():
                path.replace(path.with_name(f"{path.name}.damaged"))
        damaged = [(path.stat().st_mtime_ns, path, match["stem"]) for path, match in self._files(_DAMAGED)]
        latest = list(dict.fromkeys([manifest.stem, *(stem for *_, stem in sorted(damaged, reverse=True))]))
        for _, path, stem in damaged:
            if stem not in latest[:_KEPT_DAMAGED]:
                path.unlink()

    def _prune(self) -> None:
        """Remove this run's checkpoints except the newest, manifest first, and files that broken writes left behind."""
        own = [manifest for manifest in self._manifests() if self._may_remove(manifest)]
        for manifest in own[self._keep :]:
            manifest.unlink()
            manifest.with_suffix(".pt").unlink(missing_ok=True)
        for path, _ in self._files(_LEFTOVER):
            final = path.with_suffix("")
            if final.suffix == ".json" and not final.exists():  # its data may have got its name
                final.with_suffix(".pt").unlink(missing_ok=True)
            path.unlink()

    def _may_remove(self, manifest: Path) -> bool:
        """Say whether a checkpoint is known to be this run's."""
        try:
            said = _said(manifest)
        except (_DamagedError, OSError):
            return False
        return said["format"] == FORMAT and self._is_own(said)

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
        """Return the files, not folders, whose name matches."""
        found = [(path, pattern.fullmatch(path.name)) for path in self.folder.iterdir()]
        return [(path, match) for path, match in found if match is not None and path.is_file()]


_FIELDS: Final = {"format": int, "run": str, "phase": int, "step": int, "bytes": int, "sha256": str}
_MAY_LACK: Final = ("run", "phase")
"""Fields that manifests of earlier versions of this code lack."""


def _said(manifest: Path) -> dict[str, Any]:
    """Return the content of a manifest; OSError if it cannot be read, _DamagedError if it is not what was written."""
    try:
        said = json.loads(manifest.read_bytes())
    except FileNotFoundError as error:
        raise _DamagedError(f"{manifest.name} is missing") from error
    except ValueError as error:
        raise _DamagedError(f"its manifest cannot be understood ({error})") from error
    if not isinstance(said, dict):
        raise _DamagedError("its manifest is no mapping")
    for name, kind in _FIELDS.items():
        if type(said.get(name)) is not kind and not (name in _MAY_LACK and name not in said):
            raise _DamagedError(f"its manifest says {name}: {said.get(name)!r}")
    if said["format"] == FORMAT and manifest.stem != (stem := _stem(said["step"], said.get("phase", 0))):
        raise _DamagedError(f"its manifest is that of {stem}")
    return said


def _stem(step: int, phase: int) -> str:
    """Return the name of a checkpoint's files, without the suffix; ``_STEM`` is its pattern."""
    return f"phase_{phase:02d}_step_{step:09d}" if phase else f"step_{step:09d}"


def _order(name: re.Match[str]) -> tuple[int, int]:
    """Return phase and step of a checkpoint: the greater, the newer."""
    return int(name["phase"] or 0), int(name["step"])


def save_network(path: Path, state: Mapping[str, Any]) -> None:
    """Write the weights and masks of a network that a run makes on the way: the whole file, or nothing.

    ``state``: its ``model`` and its ``sparsifier``, as in a checkpoint. What is kept has the same form, without what
    only training needs. An OSError (disk full) names the file.
    """
    kept = {"model": state["model"], "sparsifier": {"masks": state["sparsifier"]["masks"]}}
    with _writing(f"network {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, shared=False, needed=_bytes(kept)) as (file,):
            _dump(kept, file)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Raise OSError that names the file if it cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot write {what} ({error}); earlier checkpoints are intact") from error


def _dump(state: Any, file: BufferedRandom) -> None:
    """Write a state; OSError if the system does not let it be written, which torch hides behind words of its own."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _bytes(state: Any) -> int:
    """Return how much memory the tensors of a nested state take, which is about what they take on the disk."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping | list | tuple):
        return sum(map(_bytes, state.values() if isinstance(state, Mapping) else state))
    return 0
