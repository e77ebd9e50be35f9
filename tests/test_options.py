"""Declarations: what is read of them, and what they refuse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst import registry
from dst.options import (
    ASIDE,
    REQUIRED,
    Clash,
    Each,
    Excludes,
    Needs,
    OneOf,
    OptionError,
    Range,
    Text,
    ZeroOr,
    check_part,
    checked,
    declared,
    exactly_one,
    problems,
    read,
    require,
)
from dst.run import terminal


def told(annotation, value, default=None, **others):
    """What is wrong with an option ``x`` of this declaration."""
    return list(problems({"x": read("x", annotation, default)}, {"x": value}, others))


# -- what is allowed ---------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-3, 3) | st.floats(-3, 3)


@given(NUMBERS, NUMBERS, st.sampled_from(["[]", "[)", "(]", "()"]), NUMBERS)
def test_a_range_is_an_interval(low, high, ends, value):
    inside = (value > low or (value == low and ends[0] == "[")) and (value < high or (value == high and ends[1] == "]"))
    assert (told(Annotated[float, Range(low, high, ends)], value) == []) == inside


def test_zero_or_a_range():
    kind = Annotated[int, ZeroOr(2), "it"]
    assert told(kind, 0) == told(kind, 2) == told(kind, 9) == []
    assert [told(kind, value) for value in (1, -1)] == [["x=1: must be 0 or >= 2"], ["x=-1: must be 0 or >= 2"]]
    assert str(ZeroOr(2)) == "0 or >= 2"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(value):
    assert told(Annotated[float, Range(0, ends="(]")], value) == [f"x={value}: must be a finite number > 0"]
    assert told(Annotated[float, Range()], value) == [f"x={value}: must be a finite number"]
    assert told(Annotated[list[float], Each(Range())], [0.0, value]) == [
        f"x=[0.0, {value}]: must be a list, each finite"
    ]


STOP = Annotated[float, Range(0, "stop", "[)")]


def test_a_bound_is_the_value_of_another_option():
    assert told(STOP, 0.9, stop=0.75) == ["x=0.9: must be in [0, stop=0.75)"]
    assert told(STOP, 0.75, stop=0.75) != []
    assert told(STOP, 0.7, stop=0.75) == []
    assert str(Range(0, "stop", "[)")) == "in [0, stop)"


@pytest.mark.parametrize("stop", [None, math.nan, -1.0, 0, "late"])
def test_what_is_no_bound_is_none(stop):
    """The other option is missing or itself impossible, which is reported for it."""
    assert told(STOP, 7.0, stop=stop) == []
    assert told(STOP, 7.0) == []
    assert told(STOP, -1.0, stop=stop) != []


@pytest.mark.parametrize(
    ("kind", "value", "wrong"),
    [
        (int, 1.5, "a whole number"),
        (int, True, "a whole number"),
        (float, "1", "a number"),
        (float, False, "a number"),
        (float, None, "a number"),
        (bool, 1, "true or false"),
        (str, 1, "a text"),
        (list[int], "12", "a list"),
        (list[int], [1, 0.5], "a list, each a whole number"),
    ],
)
def test_types(kind, value, wrong):
    (problem,) = told(Annotated[kind, "it"], value)
    assert problem.endswith(f": must be {wrong}")
    assert told(Annotated[kind | None, "it"], None) == []


def test_whole_numbers_are_numbers_and_tuples_are_lists():
    assert told(Annotated[float, Range(0, 1)], 1) == told(Annotated[Sequence[int], Each(Range(0))], (1, 2)) == []


def test_lists():
    milestones = Annotated[list[float], Each(Range(0, 1, "()"), least=1, order="<")]
    assert told(milestones, [0.2, 0.5]) == []
    for wrong in ([], [0.5, 0.2], [0.5, 0.5], [0.5, 1.0]):
        assert told(milestones, wrong) == [f"x={wrong}: must be a list of 1 or more, each in (0, 1), increasing"]
    scale = Annotated[list[float], Each(Range(0, 1), least=2, most=2, order="<=")]
    assert told(scale, [0.5, 0.5]) == []
    for wrong in ([0.5], [0.1, 0.2, 0.3], [0.2, 0.1]):
        assert told(scale, wrong) == [f"x={wrong}: must be a list of 2, each in [0, 1], not decreasing"]


def test_names_and_texts():
    assert told(Annotated[str, OneOf("layer", "global")], "layr") == [
        "x=layr: did you mean 'layer'? allowed: global, layer"
    ]
    assert told(Annotated[str, Text("[ab]+", "a word of a and b")], "abc") == ["x=abc: must be a word of a and b"]
    assert told(Annotated[str, Text("[ab]+", "a word of a and b")], "ab") == []


def test_what_is_of_no_use_without_another():
    mode = Annotated[str, Needs("padding"), "mode"]
    assert told(mode, "zeros", default="reflect", padding=0) == [
        "x=zeros: needs padding, which is 0: set that, or x=reflect"
    ]
    assert told(mode, "reflect", default="reflect", padding=0) == []
    assert told(mode, "zeros", default="reflect", padding=2) == told(mode, "zeros", default="reflect") == []
    nesterov = Annotated[bool, Needs("momentum"), "Nesterov's"]
    assert told(nesterov, True, default=True, momentum=0.0) == [
        "x=true: needs momentum, which is 0.0: set that, or x=false"
    ]
    assert told(nesterov, False, default=True, momentum=0.0) == []


def test_what_is_of_no_use_without_one_value_of_another():
    rate = Annotated[float, Needs("lr", "triangular"), "rate"]
    assert told(rate, 0.2, default=0.1, lr="constant") == [
        "x=0.2: needs lr=triangular, not constant: set that, or x=0.1"
    ]
    assert told(rate, 0.1, default=0.1, lr="constant") == told(rate, 0.2, default=0.1, lr="triangular") == []
    assert str(Needs("lr", "triangular")) == "needs lr=triangular"
    grown = Annotated[bool, Needs("frozen", False), "grown"]
    assert told(grown, True, default=False, frozen=True) == [
        "x=true: needs frozen=false, not true: set that, or x=false"
    ]
    assert told(grown, True, default=False, frozen=False) == []


def test_what_does_not_go_with_another():
    scale = Annotated[float | None, Excludes("padding"), "scale"]
    assert told(scale, 0.5, padding=4) == ["x=0.5: does not go with padding=4: leave out one of them (x=null)"]
    assert told(scale, 0.5, padding=0) == told(scale, None, padding=4) == []


def test_one_value_does_not_go_with_one_of_another():
    name = Annotated[str, Clash("tf32", "device", "cpu", "it is not there")]
    assert told(name, "tf32", device="cpu") == ["x=tf32: with device=cpu it is not there"]
    assert told(name, "tf32", device="cuda") == told(name, "fp32", device="cpu") == told(name, "tf32") == []
    late = Annotated[bool, Clash(True, "stop", Range(0, 1, "[)"), "it is of no use")]
    assert told(late, True, stop=0.5) == ["x=true: with stop=0.5 it is of no use"]
    assert told(late, True, stop=1.0) == told(late, False, stop=0.5) == told(late, True, stop="late") == []
    assert [str(read("x", kind).conditions[0]) for kind in (name, late)] == [
        "not tf32 with device=cpu",
        "not true with stop in [0, 1)",
    ]


def test_a_declaration_may_be_declared_further():
    option = read("every", Annotated[Annotated[int, Range(1), "steps"] | None, ASIDE], None)
    assert (option.type, option.nullable, option.aside, option.help) == (int, True, True, "steps")
    assert option.conditions == (Range(1),)


# -- where it is declared ----------------------------------------------------------------------------------------------

Every = Annotated[int, Range(1), "steps"]


@dataclass
class Group:
    every: Every | None = None
    stop: Annotated[float, ASIDE, Range(0, 1), "a fraction"] = 1.0
    start: Annotated[float, Range(0, "stop", "[)"), "a fraction"] = 0.0


@dataclass(kw_only=True)
class Plan(Group):
    every: Every

    def __post_init__(self):
        require(self)


def test_a_declaration_is_read_from_a_dataclass():
    every, stop, start = declared(Group).values()
    assert (every.type, every.nullable, every.default, every.help) == (int, True, None, "steps")
    assert (stop.aside, start.aside, start.conditions) == (True, False, (Range(0, "stop", "[)"),))
    assert declared(Group) is declared(Group)
    assert not declared(Plan)["every"].nullable


def test_a_dataclass_checks_itself_and_tells_all():
    assert Plan(every=3, start=0.2).stop == 1.0
    with pytest.raises(OptionError, match=r"^every=0: must be >= 1; stop=2: must be in \[0, 1\]$"):
        Plan(every=0, stop=2)
    with pytest.raises(ValueError, match="every=null: must be a whole number"):
        Plan(every=None)


@checked
def curve(plan, peak: Annotated[float, Range(0)], *, floor: Annotated[float, Range("start", "peak"), "the last"] = 0.0):
    """Return both."""
    return peak, floor


def test_a_function_checks_its_arguments():
    assert curve(None, 2, floor=1) == (2, 1)
    assert curve.__doc__ == "Return both."
    with pytest.raises(OptionError, match=r"^curve: floor=3: must be in \[start, peak=2\]$"):
        curve(None, 2, floor=3)
    with pytest.raises(OptionError, match=r"^curve: floor=0.1: must be in \[start=0.25, peak=2\]$"):
        curve(Plan(every=1, start=0.25), 2, floor=0.1)
    with pytest.raises(OptionError, match="peak=-1"):
        curve(None, -1)
    with pytest.raises(TypeError, match="flor"):
        curve(None, 2, flor=1)


@exactly_one("a", "b")
def score(
    layer, *, a: Annotated[float | None, Range(0)] = None, b: Annotated[float | None, Range(0)] = None, c: int = 0
):
    return layer


def strange(layer, *, x: "Nowhere" = 0, y):  # noqa: F821 - an annotation without a meaning
    return layer


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (partial(score, a=-1), "drop: a=-1: must be >= 0"),
        (score, "drop: exactly one of a and b is needed, not a=null and b=null"),
        (partial(score, a=1, b=2), "drop: exactly one of a and b is needed, not a=1 and b=2"),
        (partial(score, d=1), "drop: d=1: allowed: a, b, c"),
        (strange, "drop: y is missing: bind it by functools.partial"),
        (partial(strange, y=1, z=2), "drop: z=2: allowed: x, y"),
    ],
)
def test_a_part_is_checked_when_it_is_handed_over(part, wrong):
    with pytest.raises(OptionError) as error:
        check_part(part, "drop")
    assert str(error.value) == wrong


@pytest.mark.parametrize(
    "part", [partial(score, a=1, c="whatever"), partial(strange, y=1, x="x"), lambda layer: 1, max]
)
def test_what_is_not_declared_is_not_looked_at(part):
    check_part(part, "drop")


# -- read from the source ----------------------------------------------------------------------------------------------


@pytest.fixture
def members(tmp_path, monkeypatch):
    """Give a kind the members that some source has."""

    def make(source):
        (tmp_path / "parts.py").write_text(source)
        monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
        monkeypatch.setattr(registry, "_MODULES", {"thing": ("parts",), "other": ("parts",)})
        for cached in (registry.members, registry.slot_options, registry._members_of):
            cached.cache_clear()
        return registry.members("thing")

    yield make
    monkeypatch.undo()
    for cached in (registry.members, registry.slot_options, registry._members_of):
        cached.cache_clear()


def test_members_are_read_without_importing_them(members):
    source = """
import nowhere
Share = Annotated[float, Range(0, 1, "(]"), "a share"]
@marked("cuts")
@exactly_one("a", "b")
def part(
    x: nowhere.X, *, a: Share | None = None, b: Annotated[Sequence[int] | None, Each(Range(1)), ASIDE, "n"] = None
):
    ...
def _helper(*, c=3): ...
"""
    (part,) = members(source).values()
    assert list(part.options.values()) == [
        read("a", Annotated[float, Range(0, 1, "(]"), "a share"] | None, None),
        read("b", Annotated[list[int] | None, Each(Range(1)), ASIDE, "n"], None),
    ]
    assert part.options["b"].aside
    assert (part.marks, part.exactly_one, part.defaults) == ({"cuts"}, ("a", "b"), {"a": None, "b": None})


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        (
            "def f(*, a): ...",
            r"parts\.py:1: parameter a of f has no annotation: declare what it may be, e\.g\. a: Anno",
        ),
        ("\ndef f(*, a: complex): ...", r"parts\.py:2: parameter a of f: cannot read complex"),
        ("def f(*, a: Annotated[list, 'x']): ...", r"parts\.py:1: parameter a of f: unknown type .*list\[str\]"),
        (
            "def f(*, a: int | str): ...",
            r"parameter a of f: unknown type int \| str; it may be int, float, str, bool, li",
        ),
        ("X = Annotated[complex, 'x']", r"parts\.py:1: X: cannot read"),
        ("def f(*, a: int = SIZE): ...", r"parameter a of f: its default SIZE is no plain value"),
        (
            "def f(*, a: Annotated[float, nowhere]): ...",
            r"parts\.py:1: parameter a of f: cannot read Annotated\[float, nowhere\].*may use",
        ),
        ("def f(*, a: Annotated[float, open('x')]): ...", "cannot read"),
        ("def f(*, a: Annotated[float, Range(0, 1, 2, 3)]): ...", "cannot read"),
    ],
)
def test_a_declaration_that_cannot_be_read_names_its_place(members, source, wrong):
    with pytest.raises(registry.DeclarationError, match=wrong):
        members(source)


def test_a_program_says_what_is_wrong_with_a_declaration_without_a_traceback(members, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "answer_interrupts", lambda told: None)  # Ctrl-C is for these tests
    assert terminal.program(lambda: len(members("def f(*, a): ..."))) == 2
    said = capsys.readouterr().err
    assert "parts.py:1: parameter a of f has no annotation" in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    with pytest.raises(TypeError, match="unsupported"):
        terminal.program(lambda: 1 + "a")


@pytest.mark.parametrize(
    "other", ["Annotated[int, Range(0)]", 'Annotated[float, ASIDE, "it"]', "Annotated[list[float], 1]"]
)
def test_members_agree_on_the_type_of_an_option(members, other):
    members(f"def f(*, a: Annotated[float | None, Range(0)] = None): ...\ndef g(*, a: {other}): ...")
    with pytest.raises(registry.DeclarationError, match="the members of thing declare a in different ways"):
        registry.slot_options("thing")


def test_members_differ_in_what_they_allow_and_in_defaults(members):
    members("def f(*, a: Annotated[float, Range(0)] = 1.0): ...\ndef g(*, a: Annotated[float | None, Range(2)]): ...")
    assert {name: option.default for name, option in registry.slot_options("thing")["a"].items()} == {
        "f": 1.0,
        "g": REQUIRED,
    }


def test_options_are_passed_on_to_the_member_that_an_option_names(members):
    members(
        "def f(*, a: Annotated[int, Range(1)] = 1): ...\n"
        'def by(*, which: Annotated[str, MemberOf("other"), "which"], **options): ...'
    )
    found = registry.options("thing", "by", {"which": "f"})
    assert list(found) == ["which", "a"]
    assert (found["a"].default, found["a"].nullable) == (None, True)
    assert list(registry.options("thing", "by", {"which": None})) == ["which"]
    assert registry.slot_options("thing")["a"].keys() == {"f", "by"}
