"""The run id, which identifies a run, and the name by which people know it."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from dst import registry
from dst.config.schema import SLOTS, Config, flatten, get, leaves
from dst.data import published
from dst.files import sha256
from dst.records.label import labelled, wrappers_of

SCHEMA_VERSION = 2
"""Part of every run id. Raise it when the meaning or the default of an existing key changes."""

_FORMERLY: Final = {("model.init", "fan_in"): ("model.fan_in", True)}
"""Settings -> as they were written when runs got their ids by them. Identities keep that, so that ids stay."""


def identity(config: Config) -> dict[str, Any]:
    """Return what identifies the run: the identity fields that do not have their default value, by dotted key."""
    defaults = flatten(Config())
    for slot in SLOTS:
        defaults |= {f"{slot}.{name}": value for name, value in _defaults_of(config, slot).items()}
    defaults["data.digest"] = published.digest(config.data.name)
    defaults["sparsity.update.adam_age"] = "tensor"  # as it was for all runs before one could choose
    found = {
        key: value
        for key, value, is_identity in leaves(config)
        if is_identity and value is not None and value != defaults[key]
    }
    for (key, value), (former_key, former_value) in _FORMERLY.items():
        if found.get(key) == value:
            del found[key]
            found[former_key] = former_value
    return found


def _defaults_of(config: Config, slot: str) -> dict[str, Any]:
    return registry.find(SLOTS[slot], get(config, slot).name).defaults


def run_id(config: Config) -> str:
    """Return the run's id; see ``id_of``."""
    return id_of(identity(config))


def id_of(identity: Mapping[str, Any]) -> str:
    """Return the id of the run with this identity: 12 hex digits of a digest of it and of the schema version."""
    canonical = json.dumps([SCHEMA_VERSION, identity], sort_keys=True, separators=(",", ":"))
    return sha256(canonical)[:12]


def run_name(config: Config, changed: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Return a name that people can read; what identifies the run is its id.

    ``changed``: what was changed in the method, by dotted key; ``identity``: that of the run. Data whose name does not
    fix their content are named with their folder; correction and procedure only where there is one.
    """
    sparsity = config.sparsity
    density = "" if sparsity.density is None else f" density={sparsity.density:g}"
    if sparsity.reparametrize.density is not None:
        density += f" reparametrize.density={sparsity.reparametrize.density:g}"
    data = config.data.name
    if published.digest(data) is None:
        data = f"{data}({PurePath(config.data.root).name})"
    method = labelled(sparsity.label, changed)
    wrapped = "".join(f" {kind}={told}" for kind, told in wrappers_of(identity).items())
    return f"{data} {config.model.name} {method}{density}{wrapped} seed={config.seed}"
