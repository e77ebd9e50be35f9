"""What commands come to is what it was: their ids, configs, weights and FLOPs, and the words of a refusal."""

import json
import shlex

import pytest

from dst import registry
from dst.config.schema import SLOTS
from tests.golden.facts import COMMANDS, CONF, FILE, REFUSED, different, facts, text

ANEW = "If it is meant so, take the facts anew by python -m tests.golden.facts --write, and commit what has changed."
RAISE = (
    "raise SCHEMA_VERSION in the config's identity, or make the new key's default keep the old meaning: finished runs "
    "are found by their ids."
)


PARTS = {"ids": f"{RAISE} {ANEW}", "base": ANEW, "configs": ANEW, "counts": ANEW, "refusals": ANEW}
"""What to do where a part has changed. ``base``: the config of the default run, of which others name what differs."""


@pytest.fixture
def then():
    return json.loads(FILE.read_text())


@pytest.mark.slow
def test_facts_are_what_they_were(then):
    """One test of all, since they are worked out once; the ids come first, and every part has its own lines."""
    now = json.loads(text(facts()))
    found = {part: list(different(then[part], now[part])) for part in PARTS}
    told = [
        f"{part}: {len(lines)} changed; {PARTS[part]}" + "".join(f"\n  {line}" for line in lines)
        for part, lines in found.items()
        if lines
    ]
    unchanged = [part for part, lines in found.items() if not lines]
    assert not told, "\n".join([*told, f"as they were: {', '.join(unchanged) or 'none'}"])


def test_every_command_is_accepted_or_refused_as_it_is_meant(then):
    assert not [command for command, config in then["configs"].items() if "refused" in config]
    assert not [command for command, refusal in then["refusals"].items() if refusal["code"] != 2]
    assert [list(then[part]) for part in ("ids", "configs", "counts")] == [list(COMMANDS)] * 3
    assert list(then["refusals"]) == list(REFUSED)


def test_commands_use_all_that_there_is(then):
    """Every file below conf, and every member of every slot."""
    typed = {text for command in COMMANDS for text in shlex.split(command)}
    default = {"tracking=wandb_offline", "schedule=digits", "hardware=cpu", "hydra/launcher=slurm"}  # by hardware=slurm
    files = {f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.rglob("*.yaml") if path.parent != CONF}
    options = {text for text in files if text.partition("=")[0] not in ("model", "data", "sparsity")}
    assert options <= typed | default
    configs = [then["base"] | config for config in then["configs"].values()]
    for slot, kind in SLOTS.items():
        used = {config[f"{slot}.name"] for config in configs}
        assert set(registry.members(kind)) - used == set(), slot


def test_a_difference_names_command_and_key(then):
    now = json.loads(json.dumps(then))
    was = then["counts"]["sparsity=set"]["layers"]["fc1"]
    now["counts"]["sparsity=set"]["layers"]["fc1"] += 1
    del now["counts"]["sparsity=rigl"]["layers"]
    now["configs"]["sparsity=set"]["schedule.epochs"] = 50.0
    assert [line.partition(": {")[0] for line in different(then, now)] == [
        "[configs] > sparsity=set > schedule.epochs: new: 50.0",
        "[counts] > sparsity=rigl > layers: gone",
        f"[counts] > sparsity=set > layers > fc1: {was} became {was + 1}",
    ]
