"""What parts say, in the terms of the config.

A part knows its own parameters and no config: its messages write them as ``name=value`` (``crop_padding=5``). Users set
keys, so the room that knows both puts the key in their place (``data.augment.crop_padding=5``).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final

from dst.config.schema import Config, ConfigError, get, leaves

_VALUES: Final = {"None": "null", "True": "true", "False": "false"}
"""Values as Python writes them -> as an override does."""


@contextmanager
def in_config_terms(*nodes: str, **others: str) -> Iterator[None]:
    """Translate the errors that parts raise inside; their type stays. A ConfigError passes: it names keys already.

    ``nodes``, ``others``: as for ``translated``.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, RuntimeError) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (translated(error.args[0], *nodes, **others), *error.args[1:])
        raise


def translated(message: str, *nodes: str, **others: str) -> str:
    """Put the config key in the place of every parameter that a message writes as ``name=value``.

    ``nodes``: the nodes of the config that hold the options of the parts, e.g. ``data``. ``others``: parameter -> key,
    where the two have different names. A name that two options below the nodes share stays as it is, and so does a key:
    to translate twice changes nothing.
    """
    keys = {**_keys(nodes), **others}

    def key(found: re.Match[str]) -> str:
        name, value = found.groups(default="")
        return f"{keys[name]}={_VALUES.get(value, value)}" if name in keys else found[0]

    return re.sub(r"(?<![\w./-])(\w+)=(None\b|True\b|False\b)?", key, message)


@cache
def _keys(nodes: tuple[str, ...]) -> Mapping[str, str]:
    """Return the keys of all options below these nodes by their last name, where only one has it."""
    keys = [key for node in nodes for key, _, _ in leaves(get(Config(), node), f"{node}.")]
    names = Counter(key.rpartition(".")[2] for key in keys)
    return {name: key for key in keys if names[name := key.rpartition(".")[2]] == 1}
