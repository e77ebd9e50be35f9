"""What identifies a run: the run id, and the name that people read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dst import registry
from dst.config.schema import SLOTS, Config, flatten, get, leaves
from dst.data import published

SCHEMA_VERSION = 1
"""Part of every run id. Raise it when the meaning of an existing key changes."""


def identity(config: Config) -> dict[str, Any]:
    """Return what identifies the run: identity fields whose value is not the default, by dotted key."""
    defaults = flatten(Config())
    for slot in SLOTS:
        defaults |= {f"{slot}.{name}": value for name, value in _defaults_of(config, slot).items()}
    defaults["data.digest"] = published.digest(config.data.name)
    return {
        key: value
        for key, value, is_identity in leaves(config)
        if is_identity and value is not None and value != defaults[key]
    }


def _defaults_of(config: Config, slot: str) -> dict[str, Any]:
    return registry.find(SLOTS[slot], get(config, slot).name).defaults


def run_id(config: Config) -> str:
    """Return the run's id; see ``id_of``."""
    return id_of(identity(config))


def id_of(identity: Mapping[str, Any]) -> str:
    """Return the id of the run with this identity: 12 hex digits of a digest of it and of the schema version."""
    canonical = json.dumps([SCHEMA_VERSION, identity], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def run_name(config: Config) -> str:
    """Return a readable name, for people, with the folder of data whose name fixes no content; the id counts."""
    density = "" if config.sparsity.density is None else f" density={config.sparsity.density:g}"
    data = config.data.name
    if published.digest(data) is None:
        data = f"{data}({PurePath(config.data.root).name})"
    return f"{data} {config.model.name} {config.sparsity.label}{density} seed={config.seed}"
