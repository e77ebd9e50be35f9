"""What commands come to is what it was: their ids, configs, weights and FLOPs, and the words of a refusal."""

import json
import shlex

import pytest

from dst import registry
from dst.config import SLOTS
from tests.golden.facts import COMMANDS, CONF, FILE, REFUSED, different, facts, text

ANEW = "If it is meant so, take the facts anew by python -m tests.golden.facts --write, and commit what has changed."
RAISE = (
    "raise SCHEMA_VERSION in the config's identity, or make the new key's default keep the old meaning: finished runs "
    "are found by their ids."
)


@pytest.fixture(scope="module")
def now():
    return json.loads(text(facts()))


@pytest.fixture(scope="module")
def then():
    return json.loads(FILE.read_text())


def told(then, now, part, advice=""):
    lines = list(different(then[part], now[part]))
    return f"{len(lines)} changed:\n" + "\n".join([*lines, *filter(None, (advice, ANEW))]) if lines else ""


def test_ids_are_what_they_were(then, now):
    assert not (message := told(then, now, "ids", RAISE)), message


@pytest.mark.parametrize("part", ["base", "configs", "counts", "refusals"])
def test_facts_are_what_they_were(then, now, part):
    assert not (message := told(then, now, part)), message


def test_every_command_is_accepted_or_refused_as_it_is_meant(now):
    assert not [command for command, config in now["configs"].items() if "refused" in config]
    assert not [command for command, refusal in now["refusals"].items() if refusal["code"] == 0]
    assert [list(now["ids"]), list(now["refusals"])] == [list(COMMANDS), list(REFUSED)]


def test_commands_use_all_that_there_is(now):
    """Every file below conf, and every member of every slot."""
    typed = {text for command in COMMANDS for text in shlex.split(command)}
    default = {"tracking=wandb_offline", "schedule=digits", "hardware=cpu", "hydra/launcher=slurm"}  # by hardware=slurm
    files = {f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.rglob("*.yaml") if path.parent != CONF}
    options = {text for text in files if text.partition("=")[0] not in ("model", "data", "sparsity")}
    assert options <= typed | default
    configs = [now["base"] | config for config in now["configs"].values()]
    for slot, kind in SLOTS.items():
        used = {config[f"{slot}.name"] for config in configs}
        assert set(registry.members(kind)) - used == set(), slot


def test_a_difference_names_command_and_key(then):
    counts = json.loads(json.dumps(then["counts"]))
    counts["sparsity=set"]["layers"]["fc1"] += 1
    del counts["sparsity=rigl"]
    one, *others = different({"counts": then["counts"]}, {"counts": counts})
    was = then["counts"]["sparsity=set"]["layers"]["fc1"]
    assert "[counts] > sparsity=rigl: gone" in one
    assert others == [f"[counts] > sparsity=set > layers > fc1: {was} became {was + 1}"]
