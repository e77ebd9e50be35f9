"""Read wandb's offline files back with wandb's own message definitions.

The log is LevelDB's format after a header of 7 bytes: blocks of 32 KiB; in them chunks of checksum (4 bytes), length
(2), type (1: whole, 2: first, 3: middle, 4: last) and data; a block's last 6 bytes or fewer are padding. (Versions
before 0.31 had ``wandb.sdk.internal.datastore`` for this; now only wandb's own process, in Go, reads it.)
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768


@dataclass
class Offline:
    """What one ``.wandb`` file holds."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[Any] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None
    is_preempting: bool = False


def folders(run_folder: Path) -> list[Path]:
    """Return wandb's folders of a run, oldest first."""
    return sorted((run_folder / "wandb").glob("*run-*"))


def read(folder: Path) -> Offline:
    """Read the only ``.wandb`` file in one of wandb's folders."""
    from wandb.proto import wandb_internal_pb2 as proto

    found = Offline()
    (path,) = folder.glob("run-*.wandb")
    for data in records(path.read_bytes()):
        record = proto.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            found.history.append(items(record.history.item))
        elif kind == "summary":
            found.summary |= items(record.summary.update)
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "preempting":
            found.is_preempting = True
    return found


def items(updates: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}


def records(data: bytes) -> list[bytes]:
    """Return all whole records of a log; a torn end is passed over."""
    assert data[:4] == b":W&B", data[:7]
    found, partial, position = [], b"", 7
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind == 0 or len(chunk) < length:
            break
        partial = chunk if kind in (1, 2) else partial + chunk
        if kind in (1, 4):
            found.append(partial)
    return found
