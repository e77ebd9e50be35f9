"""Every key that a user can set, as people read it: type, default, what is allowed, what it does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dst import registry
from dst.config.launcher import LAUNCHER_OPTIONS, LauncherSettings
from dst.config.schema import SLOTS, Config, ConfigError, nodes
from dst.options import REQUIRED, Option, declared, shown, suggest

_ABOUT = """\
# Keys

Made by `python run.py --keys --markdown > docs/keys.md`; `python run.py --keys PREFIX` shows the keys that begin with
PREFIX. An option with members named before its help works with these only. While such an option is null, the member's
default applies, which is shown here.
"""


@dataclass(frozen=True)
class Key:
    """A key, or one meaning of it: an option may be declared differently by the ``members`` of a slot that take it."""

    key: str
    type: str
    default: str
    allowed: str
    help: str
    members: tuple[str, ...] = ()


def keys(prefix: str = "") -> list[Key]:
    """Return every key that begins with ``prefix``, in the schema's order; ConfigError if there is none."""
    launcher = declared(LauncherSettings)
    every = [*_of_config(), *(_key(f"hydra.launcher.{name}", launcher[name]) for name in LAUNCHER_OPTIONS)]
    found = [key for key in every if key.key.startswith(prefix)]
    if not found:
        near = suggest(prefix, dict.fromkeys(key.key for key in every)).split("allowed:")[0].strip()
        raise ConfigError([f"--keys {prefix}: no key begins with that; {near or 'leave the prefix out to see all'}"])
    return found


def text(found: list[Key]) -> str:
    """Return keys as text, two lines each."""
    return "\n".join(
        f"{key.key}: {key.type} = {key.default}{f'   [{key.allowed}]' if key.allowed else ''}\n    {_about(key)}"
        for key in found
    )


def markdown(found: list[Key]) -> str:
    """Return keys as a page of Markdown, a table for each group."""
    lines, group = [_ABOUT], ""
    for key in found:
        above, _, _ = key.key.rpartition(".")
        if above != group or not lines[1:]:
            group = above
            lines += ["", f"## {group}" if group else "## (top level)", "", "| key | type | default | allowed | |"]
            lines += ["|---|---|---|---|---|"]
        cells = (f"`{key.key}`", key.type, f"`{key.default}`", key.allowed, _about(key))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _about(key: Key) -> str:
    return f"{', '.join(key.members)}: {key.help}" if key.members else key.help


def _of_config() -> Iterator[Key]:
    for key, node, _ in sorted(nodes(Config()), key=lambda found: found[0] == ""):
        of_members = registry.slot_options(SLOTS[key]) if key in SLOTS else {}
        for name, option in declared(type(node)).items():
            full = f"{key}.{name}" if key else name
            if name in of_members:
                yield from _meanings(full, of_members[name])
            else:
                yield _key(full, option)


def _meanings(full: str, by_member: Mapping[str, Option]) -> Iterator[Key]:
    """Yield a key for each way in which members declare an option."""
    members: dict[Key, list[str]] = {}
    for name, option in by_member.items():
        members.setdefault(_key(full, option), []).append(name)
    yield from (replace(key, members=tuple(names)) for key, names in members.items())


def _key(full: str, option: Option) -> Key:
    default = "(required)" if option.default is REQUIRED else shown(option.default)
    return Key(
        full,
        option.type_name() + (" or null" if option.nullable else ""),
        default,
        option.allowed(),
        option.help.replace("``", "`"),  # of a docstring
    )
