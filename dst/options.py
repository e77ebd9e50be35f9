"""How an option is declared, and what is wrong with values. Standard library only: anybody may import this.

An option is stated once, as ``Annotated[type, what is allowed, "what it does"]``: options of a group are the fields of
a dataclass, those of a member (``quantile`` of ``threshold``) the keyword-only parameters of its function. The schema
of configs, their checks, the list of keys and the checks of the parts themselves are made of these declarations.
"""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, wraps
from itertools import pairwise
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints


class _Sentinel:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


REQUIRED: Final = _Sentinel("REQUIRED")
"""Marks an option without a default."""

ASIDE: Final = _Sentinel("ASIDE")
"""In a declaration: the option is no part of a run's identity."""

PATH: Final = _Sentinel("PATH")
"""In a declaration: the text is a path, in a config ``~`` at its beginning is the home folder."""

Names = Callable[[str], str]
"""What an option is called in messages, by its name: in a config, its key."""

Values = Mapping[str, Any]
"""Options by name, with all others that a condition may look at."""

_WORDS: Final = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_KINDS: Final = {int: Integral, float: Real, str: str, bool: bool}
_F = TypeVar("_F", bound=Callable[..., Any])


class OptionError(ValueError):
    """Options that cannot be: one problem or more, each naming the option, its value and what is allowed."""


# ---------------------------------------------------------------------------------------------------------------------
# What is allowed


class Condition(Protocol):
    """What a declaration demands of a value. ``str()`` of it is what people read in the list of keys."""

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return what is wrong with a value of an option among ``values``, or None."""
        ...


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high``; ``ends`` says which of the two are in it, as in ``[0, 1)``.

    A bound may be the name of another option, whose value it is. One without a value is no bound. Bounds that leave no
    number are ignored; the other option's check reports it.
    """

    low: float | str = -math.inf
    high: float | str = math.inf
    ends: str = "[]"

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that a number lies outside."""
        low, high = self._bounds(values)
        if low > high or (low == high and self.ends != "[]"):
            values = {}
            low, high = self._bounds(values)
        above = value >= low if self.ends[0] == "[" else value > low
        below = value <= high if self.ends[1] == "]" else value < high
        if not math.isfinite(value):
            return f"must be a finite number{'' if self == Range() else f' {self._told(values, called)}'}"
        return None if above and below else f"must be {self._told(values, called)}"

    def _bounds(self, values: Values) -> tuple[float, float]:
        return _number(self.low, values, -math.inf), _number(self.high, values, math.inf)

    def __str__(self) -> str:
        return self._told({}, str) if self != Range() else "finite"

    def _told(self, values: Values, called: Names) -> str:
        low, high = (
            f"{called(bound)}={values[bound]}" if isinstance(bound, str) and values.get(bound) is not None else bound
            for bound in (self.low, self.high)
        )
        if high == math.inf:
            return f"{'>=' if self.ends[0] == '[' else '>'} {low}"
        return f"in {self.ends[0]}{low}, {high}{self.ends[1]}"


@dataclass(frozen=True)
class ZeroOr(Range):
    """Zero, which turns something off, or a number in a range."""

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that a number is neither."""
        return None if value == 0 else super().problem(option, value, values, called)

    def _told(self, values: Values, called: Names) -> str:
        return f"0 or {super()._told(values, called)}"


def _number(bound: float | str, values: Values, otherwise: float) -> float:
    """Return a bound's number; ``otherwise`` if it is the name of an option that has none."""
    if not isinstance(bound, str):
        return bound
    found = values.get(bound)
    return float(found) if isinstance(found, Real) and not math.isnan(found) else otherwise


@dataclass(frozen=True, init=False)
class OneOf:
    """One of some names, or of some numbers."""

    names: tuple[str | int, ...]

    def __init__(self, *names: str | int) -> None:
        object.__setattr__(self, "names", names)

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that a name is none of them, and which comes near."""
        if value in self.names:
            return None
        return suggest(value, map(str, self.names)) if isinstance(value, str) else f"must be {self}"

    def __str__(self) -> str:
        return " | ".join(map(str, self.names))


@dataclass(frozen=True)
class Text:
    """A text that matches a regular expression. ``told``: how messages describe it."""

    pattern: str
    told: str

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that a text does not match."""
        return None if re.fullmatch(self.pattern, value) else f"must be {self.told}"

    def __str__(self) -> str:
        return self.told


SHA256: Final = Text("[0-9a-f]{64}", "a SHA-256, 64 digits of 0-9 and a-f")


@dataclass(frozen=True)
class Each:
    """A list: what each of its elements must be, how many it has, and its order (``<``, ``<=`` or none)."""

    element: Range | OneOf | Text | None = None
    least: int = 0
    most: float = math.inf
    order: str = ""

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that a list is too short or too long, out of order, or has an element that cannot be."""
        ordered = not self.order or all(a < b or (a == b and self.order == "<=") for a, b in pairwise(value))
        of = self.element
        sound = of is None or all(of.problem(option, item, values, called) is None for item in value)
        if ordered and sound and self.least <= len(value) <= self.most:
            return None
        return f"must be a list{' of' if self.least else ','} {self}"

    def __str__(self) -> str:
        number = f"{self.least}" if self.least == self.most else f"{self.least} or more" if self.least else ""
        order = {"": "", "<": "increasing", "<=": "not decreasing"}[self.order]
        return ", ".join(filter(None, [number, f"each {self.element}" if self.element else "", order]))


@dataclass(frozen=True)
class Needs:
    """Has an effect only with another option, or with one value of it; it counts as used if it is not the default.

    True counts as used even where it is the default.
    """

    other: str
    value: Any = None

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that the other option is null, false or zero, or has another value than is needed."""
        if self.other not in values or self._is_met(values[self.other]) or not option.is_used(value):
            return None
        other, theirs = called(self.other), shown(values[self.other])
        needed = f"{other}, which is {theirs}" if self.value is None else f"{other}={shown(self.value)}, not {theirs}"
        return f"needs {needed}: set that, or {option.unset(called)}"

    def _is_met(self, theirs: Any) -> bool:
        return bool(theirs) if self.value is None else theirs == self.value

    def __str__(self) -> str:
        return f"needs {self.other}" + ("" if self.value is None else f"={shown(self.value)}")


@dataclass(frozen=True)
class Excludes:
    """Does not go with another option."""

    other: str

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that the other option is set too."""
        if not values.get(self.other) or not option.is_used(value):
            return None
        other = f"{called(self.other)}={shown(values[self.other])}"
        return f"does not go with {other}: leave out one of them ({option.unset(called)})"

    def __str__(self) -> str:
        return f"not with {self.other}"


@dataclass(frozen=True)
class Clash:
    """One value does not go with a value of another option, or with any in a range of them, and ``why``."""

    value: Any
    other: str
    theirs: Any
    why: str

    def problem(self, option: "Option", value: Any, values: Values, called: Names) -> str | None:
        """Return that both options have these values."""
        theirs = values.get(self.other)
        if isinstance(self.theirs, Range):
            is_theirs = isinstance(theirs, Real) and self.theirs.problem(option, theirs, values, called) is None
        else:
            is_theirs = theirs == self.theirs
        return f"with {called(self.other)}={shown(theirs)} {self.why}" if is_theirs and value == self.value else None

    def __str__(self) -> str:
        theirs = f" {self.theirs}" if isinstance(self.theirs, Range) else f"={shown(self.theirs)}"
        return f"not {shown(self.value)} with {self.other}{theirs}"


# ---------------------------------------------------------------------------------------------------------------------
# A declaration, read


@dataclass(frozen=True)
class Option:
    """An option as it is declared. ``type`` is without None, which it may be if ``nullable``.

    ``default`` may be ``REQUIRED``; ``aside``: no part of a run's identity; ``path``: a text that is a path.
    """

    name: str
    type: Any
    default: Any = REQUIRED
    conditions: tuple[Condition, ...] = ()
    help: str = ""
    nullable: bool = False
    aside: bool = False
    path: bool = False

    def problems(self, value: Any, values: Values, called: Names) -> Iterator[str]:
        """Yield what is wrong with a value, without the option's name; ``values``: what other options are."""
        if value is None and self.nullable:
            return
        if (misfit := _misfit(self.type, value)) is not None:
            yield misfit
            return
        for condition in self.conditions:
            if (problem := condition.problem(self, value, values, called)) is not None:
                yield problem

    def is_used(self, value: Any) -> bool:
        """Say whether a value asks for something: true, or another than the default."""
        return value is True or (value is not None and value is not False and value != self.default)

    def unset(self, called: Names = str) -> str:
        """Return how to leave the option out."""
        return f"{called(self.name)}={'false' if self.type is bool else shown(self.default)}"

    def allowed(self) -> str:
        """Return what is allowed, for people."""
        choices = ["true | false"] if self.type is bool else []
        return "; ".join([*choices, *map(str, self.conditions)])

    def type_name(self) -> str:
        """Return the type, for people."""
        return f"list[{get_args(self.type)[0].__name__}]" if get_origin(self.type) is list else str(self.type.__name__)


def _misfit(kind: Any, value: Any) -> str | None:
    """Return that a value is of another type than ``kind``."""
    if type(value) is kind:
        return None
    if get_origin(kind) is list:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return "must be a list"
        (inner,) = get_args(kind)
        return f"must be a list, each {_WORDS[inner]}" if any(_misfit(inner, item) for item in value) else None
    fits = isinstance(value, _KINDS.get(kind, object)) and (kind is bool or not isinstance(value, bool))
    return None if fits else f"must be {_WORDS.get(kind, kind)}"


def read(name: str, annotation: Any, default: Any = REQUIRED) -> Option:
    """Return the option that an annotation declares."""
    bare, nullable = _without_none(annotation)
    extras: list[Any] = []
    while get_origin(bare) is Annotated:  # more than once where ``X | None`` is annotated and X itself is
        bare, *rest = get_args(bare)
        extras += rest
        bare, within = _without_none(bare)
        nullable = nullable or within
    if get_origin(bare) is Sequence:
        bare = list[get_args(bare)]  # type: ignore[misc]
    texts = [extra for extra in extras if isinstance(extra, str)]
    conditions = tuple(extra for extra in extras if hasattr(extra, "problem"))
    return Option(name, bare, default, conditions, " ".join(texts), nullable, ASIDE in extras, PATH in extras)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    others = [kind for kind in get_args(annotation) if kind is not NoneType]
    return (others[0] if len(others) == 1 else annotation), len(others) < len(get_args(annotation))


def declared(group: type) -> Mapping[str, Option]:
    """Return the options that a dataclass declares, in order; fields that are dataclasses themselves are left out."""
    return _declared(group)


@cache  # to read annotations takes a while, and a sweep asks for each of its cells
def _declared(group: type[Any]) -> Mapping[str, Option]:
    hints = get_type_hints(group, include_extras=True)
    found = {item.name: read(item.name, hints[item.name], _default(item)) for item in fields(group)}
    return {name: option for name, option in found.items() if not is_dataclass(option.type)}


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else _or_required(item.default, MISSING)


def _or_required(default: Any, missing: Any) -> Any:
    return REQUIRED if default is missing else default


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong


def problems(
    declared: Mapping[str, Option], values: Values, around: Values | None = None, called: Names = str
) -> Iterator[str]:
    """Yield what is wrong with values, like ``initial=7.0: must be in (0, 1]``.

    ``around``: further values that may be bounds, or be needed. ``called``: what options are called.
    """
    known = {**(around or {}), **values}
    for name, option in declared.items():
        if name in values:
            for problem in option.problems(values[name], known, called):
                yield f"{called(name)}={shown(values[name])}: {problem}"


def exactly_one(*names: str) -> Callable[[_F], _F]:
    """Declare that exactly one of some options of a part must be given."""

    def mark(part: _F) -> _F:
        part.exactly_one = names  # type: ignore[attr-defined]
        return part

    return mark


def not_one(names: Sequence[str], values: Values) -> Iterator[str]:
    """Yield that not exactly one of the options is given, if so."""
    if names and sum(values.get(name) is not None for name in names) != 1:
        told = " and ".join(f"{name}={shown(values.get(name))}" for name in names)
        yield f"exactly one of {' and '.join(names)} is needed, not {told}"


def require(instance: Any) -> None:
    """Raise OptionError if the fields of a dataclass are not what they are declared to be."""
    refuse(problems(declared(type(instance)), {item.name: getattr(instance, item.name) for item in fields(instance)}))


def checked(function: _F) -> _F:
    """Let a function raise OptionError if its arguments are not what their annotations allow.

    Bounds may also be fields of a dataclass among its arguments, such as ``peak`` of a plan.
    """
    signature = inspect.signature(function)

    @cache
    def takes() -> dict[str, Option]:
        return _annotated(function)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        refuse(problems(takes(), bound.arguments, _fields_of(bound.args)), function.__qualname__)
        return function(*arguments, **options)

    return cast(_F, call)


def check_part(part: Any, kind: str) -> None:
    """Raise OptionError if a part cannot be called with the options that ``functools.partial`` has bound to it.

    ``kind``: the argument's name in messages. Undeclared parameters are not checked.
    """
    function, given = getattr(part, "func", part), getattr(part, "keywords", {})
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # nothing is known of it
        return
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        own = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
        refuse((f"{name}={shown(given[name])}: {suggest(name, own)}" for name in given if name not in parameters), kind)
    needed = (p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    refuse((f"{name} is missing: bind it by functools.partial" for name in needed if name not in given), kind)
    refuse(problems(_annotated(function), given), kind)
    refuse(not_one(getattr(function, "exactly_one", ()), given), kind)


def _annotated(function: Callable[..., Any]) -> dict[str, Option]:
    """Return the options that the parameters of a function declare; those without a declaration are left out."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a stranger's annotations need not have a meaning
        return {}
    parameters = inspect.signature(function).parameters
    found = (
        read(name, hints[name], _or_required(parameter.default, parameter.empty))
        for name, parameter in parameters.items()
        if name in hints
    )
    return {option.name: option for option in found if option.conditions or option.help}


def _fields_of(arguments: Iterable[Any]) -> dict[str, Any]:
    plans = [value for value in arguments if is_dataclass(value)]
    return {item.name: getattr(plan, item.name) for plan in plans for item in fields(plan)}


def refuse(found: Iterable[str], where: str = "") -> None:
    """Raise OptionError with all problems, if there are any; ``where``: the part that has them."""
    if told := "; ".join(found):
        raise OptionError(f"{where.removesuffix('.__init__')}: {told}" if where else told)


# ---------------------------------------------------------------------------------------------------------------------
# Words


def shown(value: Any) -> str:
    """Return a value as it is written in an override."""
    if value is None or value == "":
        return "null" if value is None else "''"
    return str(value).lower() if isinstance(value, bool) else str(value)


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return a sentence for an error message: the nearest allowed word if any, and all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}allowed: {', '.join(names) or '(nothing)'}"
