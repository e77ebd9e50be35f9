"""What a run is to be: the choices of groups and values of keys that a published command line means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

from dst.legacy.recognise import Recognised
from dst.legacy.tables import MAPS, LegacyError, Option, Program

GROUPS: Final = ("model", "data", "sparsity", "correction", "procedure", "schedule", "hardware")


@dataclass
class Plan:
    """Groups' options and keys' values, and what is to be said about them.

    ``said``: where what was given is read in another way; ``missed``: what the published code does and this does not.
    """

    values: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def set(self, **groups: str) -> None:
        """Choose options of groups."""
        self.values |= groups

    def put(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Give keys below a prefix their values."""
        self.values |= {f"{prefix}.{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Call:
    """A command line in one of the readings: what its README says, or ``as_run`` what its code does."""

    found: Recognised
    as_run: bool

    @property
    def program(self) -> Program:
        """What the line is of."""
        return self.found.program

    @property
    def paper(self) -> str:
        """The paper whose program it is."""
        return self.found.paper

    @property
    def values(self) -> SimpleNamespace:
        """The value of every option, by its name."""
        values = dict(self.found.given.values)
        if self.as_run:
            values |= {one.name: one.value(one.as_run) for one in self.program.options if one.as_run}
        return SimpleNamespace(**values)

    @property
    def processes(self) -> int:
        """In how many processes it runs."""
        return self.found.line.processes or 1

    def has(self, name: str) -> bool:
        """Say whether an option is on the command line."""
        return name in self.found.given.given

    def option(self, name: str) -> Option:
        """Return an option by its name."""
        return next(one for one in self.program.options if one.name == name)


def direct(call: Call) -> Plan:
    """Return what the options say that need no others."""
    plan, values = Plan(), call.values
    for option in call.program.options:
        if option.becomes == MAPS and option.convert == "same" and option.named == "parser":
            value = getattr(values, option.name)
            if value not in (None, ""):
                plan.values |= dict.fromkeys(option.keys, value)
    return plan


def one_of(call: Call, name: str, allowed: Mapping[str, Any]) -> Any:
    """Return what the value of an option stands for; LegacyError if it stands for nothing."""
    value = getattr(call.values, name)
    if value in allowed:
        return allowed[value]
    told = ", ".join(filter(None, allowed))
    raise LegacyError(f"{call.option(name).option} {value}: allowed: {told} ({call.option(name).meaning})")
