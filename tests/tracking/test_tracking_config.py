"""Keys of ``tracking``: what would be ignored is refused, and none of them identifies a run."""

from pathlib import Path

import pytest

from dst.config.checks import check
from dst.config.identity import run_id
from dst.tracking import tracker
from dst.tracking.tracker import NoTracker
from tests.composed import compose_cells
from tests.processes import REPOSITORY


def compose(*overrides):
    ((_, config),) = compose_cells(REPOSITORY / "conf", list(overrides), multirun=False)
    return config


def test_offline_is_the_default():
    assert (compose().tracking.mode, compose().tracking.project) == ("offline", "dst")


@pytest.mark.parametrize("option", ["none", "wandb_offline", "wandb_online"])
def test_options_are_valid_and_change_no_run(option):
    config = compose(f"tracking={option}")
    assert check(config) == []
    assert run_id(config) == run_id(compose())


@pytest.mark.parametrize("text", ["project=x", "entity=me", "tags=[a]", "notes=b", "timeout_s=5"])
def test_keys_that_would_be_ignored(text):
    (problem,) = check(compose("tracking=none", f"tracking.{text}"))
    assert f"tracking.{text.split('=')[0]}=" in problem
    assert "would be ignored" in problem
    assert "tracking=wandb_offline" in problem


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["tracking.mode=onlin"], "did you mean 'online'"),
        (["tracking.project=null"], "tracking.project is missing"),
        (["tracking.timeout_s=0"], "tracking.timeout_s=0.0: must be > 0"),
        (["tracking.tags=['']"], "wandb takes 1 to 64"),
        ([f"tracking.tags=[{'x' * 65}]"], "has 65 characters; wandb takes 1 to 64"),
        (["tracking.project=a/b"], "tracking.project=a/b contains '/'; wandb takes none of / \\ # ? % :"),
        (["tracking.project='what? 50%'"], "contains '%' '?'; wandb takes none of"),
        (["tracking.project=' '"], "has 0 characters; wandb takes 1 to 128"),
        ([f"tracking.project={'x' * 129}"], "has 129 characters; wandb takes 1 to 128"),
        (["tracking=wandb_online", "tracking.entity='us:them'"], "tracking.entity=us:them contains ':'"),
        (["tracking.entity=''"], "tracking.entity='' has 0 characters"),
        ([f"output.group={'x' * 129}"], "has 129 characters; wandb takes 1 to 128 as a group: choose a shorter one"),
        (["tracking.timeout_s=5"], "would be ignored: nothing is sent while the run trains"),
    ],
)
def test_wrong_values(overrides, told):
    (problem,) = check(compose(*overrides))
    assert told in problem


@pytest.mark.parametrize(
    "overrides",
    [
        [f"tracking.tags=[{'x' * 64}]", "tracking.project='a project'", f"output.group={'x' * 128}"],
        ["tracking=wandb_online", "tracking.timeout_s=5", "tracking.entity=some-team", f"tracking.project={'x' * 128}"],
        ["tracking=none", f"output.group={'x' * 129}"],
        ["sparsity.drop_fraction.initial=0.31", "sparsity.update.stop=0.51", "sparsity.drop_fraction.floor=0.00123"],
    ],
)
def test_what_wandb_takes_is_taken(overrides):
    assert check(compose(*overrides)) == []


def test_none_is_a_null_object():
    for mode in ("none", "offline"):
        found = tracker(mode, timeout_s=1)
        assert isinstance(found, NoTracker)
        found.begin(Path("nowhere"))
        found.poll()
        found.finish()
