"""Every option is declared whole, and the list of keys is current."""

from dataclasses import fields
from typing import get_args

import pytest

from dst import registry
from dst.config.keys import keys, markdown
from dst.config.launcher import LauncherSettings
from dst.config.schema import SLOTS, Config, flatten, nodes
from dst.data.augment import Augment
from dst.data.cache import load
from dst.data.resize import Resize
from dst.options import Each, OneOf, Range, Text, declared
from dst.registry import MemberOf
from dst.sparsity import Scope, UpdatePlan
from dst.tracking import tracker
from dst.training.checkpoint import Checkpoints
from dst.training.determinism import configure
from dst.training.lr import LRPlan
from dst.training.settings import Settings
from tests.processes import REPOSITORY

KINDS = sorted({*SLOTS.values(), "criterion"})
SCORES = ("drop", "grow", "redistribute")
"""Kinds whose members are called at every update: their options are checked when they are handed over."""

FREE = {
    *["model.weights", "sparsity.label", "sparsity.init.path", "sparsity.distribution.path"],
    *["sparsity.scope.include", "sparsity.scope.exclude", "data.categorical"],
    *[f"hardware.slurm.{name}" for name in ("partition", "account", "qos", "constraint", "setup", "options")],
    *["hardware.slurm.python", "hardware.slurm.srun_options"],
    *[f"tracking.{name}" for name in ("project", "entity", "tags", "notes")],
}
"""Keys whose texts are free."""


def leaves():
    """Every declaration of every key, those of members by member."""
    for key, node, _ in nodes(Config()):
        of_members = registry.slot_options(SLOTS[key]) if key in SLOTS else {}
        for name, option in declared(type(node)).items():
            full = f"{key}.{name}" if key else name
            yield from ((full, each) for each in of_members.get(name, {"": option}).values())
    launcher = declared(LauncherSettings)
    yield from ((f"hydra.launcher.{name}", launcher[name]) for name in launcher if name != "cluster")


LEAVES = list(leaves())


def kind_of(option):
    return get_args(option.type)[0] if get_args(option.type) else option.type


def test_every_leaf_is_looked_at_and_says_what_it_does():
    assert {key for key, _ in LEAVES if not key.startswith("hydra.")} == set(flatten(Config()))
    assert [key for key, option in LEAVES if len(option.help.split()) < 2] == []


def test_every_number_has_a_range():
    def conditions(option):
        return [item.element if isinstance(item, Each) else item for item in option.conditions]

    numbers = [(key, option) for key, option in LEAVES if kind_of(option) in (int, float)]
    assert len(numbers) > 50
    assert [
        key for key, option in numbers if not any(isinstance(item, Range | OneOf) for item in conditions(option))
    ] == []


def test_every_closed_set_of_names_has_its_choices():
    texts = {key: option for key, option in LEAVES if kind_of(option) is str}
    closed = {
        key for key, o in texts.items() if any(isinstance(item, OneOf | MemberOf | Text) for item in o.conditions)
    }
    assert texts.keys() - closed == FREE
    assert all(kind_of(option) in (int, float, str, bool) for _, option in LEAVES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_checks_its_own_options(kind):
    unchecked = [
        name
        for name, member in registry.members(kind).items()
        if member.options and kind not in SCORES and not hasattr(member.load(), "__wrapped__")
    ]
    assert unchecked == []


@pytest.mark.parametrize("checked", [UpdatePlan, Scope, LRPlan, Settings, Augment, Resize])
def test_every_field_of_what_checks_itself_is_declared(checked):
    """A field without a declaration would take any value at all."""
    found = declared(checked)
    assert found.keys() == {item.name for item in fields(checked)}
    assert [name for name, option in found.items() if not option.help] == []
    numbers = [name for name, option in found.items() if kind_of(option) in (int, float)]
    assert [
        name for name in numbers if not any(isinstance(getattr(c, "element", c), Range) for c in found[name].conditions)
    ] == []


def test_all_that_checks_itself_is_looked_at():
    source = [path.read_text() for path in (REPOSITORY / "dst").rglob("*.py")]
    assert sum(text.count("require(self)") for text in source) == 6


SETTINGS = {
    **{"seed": 0, "label_smoothing": 0.0, "accumulate": 1, "channels_last": False, "select": "last"},
    **{"eval_every_epochs": 1, "log_every_steps": 1, "checkpoint_every_s": 1.0, "checkpoint_every_steps": None},
}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Settings(**SETTINGS | {"seed": -1}), "seed=-1: must be >= 0"),
        (lambda: Settings(**SETTINGS | {"log_every_steps": 0}), "log_every_steps=0: must be >= 1"),
        (lambda: Settings(**SETTINGS | {"checkpoint_every_s": -1}), "checkpoint_every_s=-1: must be > 0"),
        (lambda: Settings(**SETTINGS | {"checkpoint_every_steps": 0}), "checkpoint_every_steps=0: must be >= 1"),
        (lambda: configure("cpu", "bogus", 2), "configure: determinism=bogus: allowed: fast, strict"),
        (lambda: configure("cpu", "strict", 0), r"configure: threads=0: must be in \[1, 1024\]"),
        (lambda: tracker("bogus", 1), "tracker: mode=bogus: allowed: none, offline, online"),
        (lambda: tracker("none", -1), "tracker: timeout_s=-1: must be > 0"),
        (lambda: Checkpoints(REPOSITORY, keep=0), "Checkpoints: keep=0: must be >= 1"),
        (
            lambda: load("digits", None, root="", cache="", download=False, storage="bogus"),
            "load: storage=bogus: allowed: auto, resident, stream",
        ),
    ],
)
def test_the_core_checks_its_own_arguments(call, told):
    Settings(**SETTINGS)
    with pytest.raises(ValueError, match=told):
        call()


def test_the_list_of_keys_is_current():
    page = (REPOSITORY / "docs" / "keys.md").read_text()
    assert page == markdown(keys()), "make it anew: python run.py --keys --markdown > docs/keys.md"
    assert all(f"`{key}`" in page for key in flatten(Config()))
