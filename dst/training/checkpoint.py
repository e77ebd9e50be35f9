"""Numbered checkpoints, written atomically, each with a digest; the newest valid one counts.

A checkpoint is ``step_<n>.pt`` (tensors and plain data only) and ``step_<n>.json`` (its digest), which is written last:
without it the checkpoint does not exist.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint of another format of ours: not damaged, but not ours to read or to remove."""


class Checkpoints:
    """The checkpoints of one run in ``folder``, of which the newest ``keep`` are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint unless this step has a valid one; OSError (disk full) leaves earlier ones alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.path(step)
        if data.with_suffix(".json").exists() and _problem(data.with_suffix(".json")) is None:
            return
        _write_atomically(data, lambda file: torch.save(state, file))
        manifest = {"format": FORMAT, "step": step, "bytes": data.stat().st_size, "sha256": sha256(data)}
        _write_atomically(data.with_suffix(".json"), lambda file: file.write(json.dumps(manifest).encode()))
        self._prune()

    def load_newest(self, map_location: str = "cpu") -> dict[str, Any] | None:
        """Return the state of the newest valid checkpoint, or None; damaged ones are passed over with a warning."""
        for manifest_path in self._manifests():
            problem = _problem(manifest_path)
            if problem is None:
                data = manifest_path.with_suffix(".pt")
                state: dict[str, Any] = torch.load(data, map_location=map_location, weights_only=True)
                return state
            print(f"warning: passing over checkpoint {manifest_path.stem}: {problem}", file=sys.stderr)
            manifest_path.unlink()  # or it would be kept in place of a good one
        return None

    def path(self, step: int) -> Path:
        """Return the file of the checkpoint of a step, whether there is one or not."""
        return self.folder / f"step_{step:09d}.pt"

    def newest(self) -> Path | None:
        """Return the file of the newest valid checkpoint, for those who only read; None if there is none."""
        found = (path.with_suffix(".pt") for path in self._manifests() if _problem(path) is None)
        return next(found, None)

    def with_digest(self, digest: str) -> Path | None:
        """Return the file of the checkpoint that was written with this digest, for those who only read."""
        for manifest in self._manifests():
            with suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(manifest.read_text())["sha256"] == digest:
                    return manifest.with_suffix(".pt")
        return None

    def _manifests(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.json"), reverse=True)

    def _prune(self) -> None:
        """Remove all but the newest checkpoints, manifest first, and what broken writes left behind."""
        manifests = self._manifests()
        for manifest in manifests[self._keep :]:
            manifest.unlink()
        keep = {path.stem for path in manifests[: self._keep]}
        for path in self.folder.iterdir():
            if path.stem not in keep or path.suffix == ".tmp":
                path.unlink()


def _problem(manifest_path: Path) -> str | None:
    """Return why a checkpoint cannot be used, or None."""
    data = manifest_path.with_suffix(".pt")
    try:
        manifest = json.loads(manifest_path.read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {data} has format {manifest['format']}, this code reads {FORMAT}; "
                "use the code that wrote it"
            )
        if data.stat().st_size != manifest["bytes"]:
            return f"it has {data.stat().st_size} bytes instead of {manifest['bytes']}"
        if sha256(data) != manifest["sha256"]:
            return "its content does not match its digest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({error})"
    return None


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a temporary file, make it durable, then give it its name."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write checkpoint {path} ({error}); earlier checkpoints are intact") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
