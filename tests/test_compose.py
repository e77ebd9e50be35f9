"""Composing many cells without repetition gives what Hydra gives of each by itself."""

import os
import random
from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dst import compose as composition
from dst.compose import Composer, _hydra, compose, compose_cells, compose_command, compose_each, from_yaml, show, to_yaml
from dst.config import ConfigError, flatten

CONF = Path(__file__).parents[1] / "conf"

COMMANDS = int(os.environ.get("DST_COMMANDS", "60"))
"""How many random commands are compared with Hydra, which takes a fifth of a second for each: CI has time for few.

All of them: ``DST_COMMANDS=2400 python -m pytest tests/test_compose.py -k random -s``.
"""

INTERPOLATIONS = {
    "int": ["${seed}", "'${schedule.epochs}'", "${oc.decode:'3'}", "${oc.select:seed}", '"${data.split_seed}"'],
    "float": ["${schedule.lr.peak}", "${seed}", "${oc.decode:0.25}", "'${sparsity.density}'", "${oc.env:NONE,0.5}"],
    "text": ["${output.group}", "x_${seed}", "'a ${seed} b'", "${oc.env:HOME}", "${oc.env:NONE,'a, b'}", "${.group}"],
    "list": ["${hardware.slurm.setup}", "${tracking.tags}", "${oc.create:[1,2]}"],
    "node": ["${schedule.lr}", "${sparsity.update}", "${oc.create:{name: x}}"],
}
VALUES = {
    "int": ["3", "17", "'5'", "int(4.0)", "1e3", "many", "null"],
    "float": ["0.3", "1", "1e-3", "'0.7'", ".5", "float(2)", "null", "true"],
    "text": ["a", "'a b'", '"it\'s"', "a\\ b", "''", "", "null", "'null'", "3", "true", "a\\,b", "/x/y:z", "\\$\\{a\\}",
             "'\\${seed}'", "'[a, b]'", "str(3)", "\\\\"],
    "list": ["[]", "[8,16]", "[1]", "['2',3]", "[a,'b c']", "[${seed},2]", "null", "[null]", "[[1]]"],
}  # fmt: skip
KEYS = {
    "int": ["seed", "data.split_seed", "schedule.epochs", "schedule.batch_size", "sparsity.update.every", "data.size"],
    "float": ["schedule.lr.peak", "schedule.label_smoothing", "sparsity.density", "sparsity.drop_fraction.initial"],
    "text": ["output.root", "output.group", "data.root", "sparsity.label", "sparsity.grow.name", "tracking.notes"],
    "list": ["model.hidden", "tracking.tags", "data.mean", "sparsity.scope.include", "hardware.slurm.setup"],
    "node": ["schedule.lr", "sparsity.update", "sparsity.init", "data.augment"],
}
NODES = [
    "schedule.lr={peak: 0.5}", "sparsity.update={every: 4, start: 0.1}", "sparsity={density: 0.3}", "model={name: mlp}",
    "data={size: 16, name: digits}", "schedule={epochs: 3, lr: {peak: '${schedule.label_smoothing}'}}",
    "tracking={tags: [a, ${seed}], notes: null}", "sparsity={drop: {name: random}, label: mine}", "output={grop: x}",
    "sparsity.scope={include: [], exclude: ['*']}", "data.augment={}", "hardware={slurm: {setup: ['a b']}}",
]  # fmt: skip
GROUPS = {
    "sparsity": ["set_itop", "granet", "dense", "nm_rigl", "snip", "'static'", "[rigl]", "none"],
    "model": ["lenet_5", "mlp", "vgg_c"],
    "schedule": ["mnist", "rigl_imagenet", "digits"],
    "hardware": ["gpu_bf16", "slurm", "cpu"],
    "data": ["cifar10", "digits", "[mnist]"],
    "tracking": ["none", "wandb_online"],
    "hydra/launcher": ["slurm", "basic"],
}
OTHERS = [
    "+seed=9", "+data.size=20", "+tracking.tags=[x]", "+sparsity.update={every: 5}", "+schedule.new=1", "+new={a: 1}",
    "+model.dropout=${schedule.label_smoothing}", "++data.size=20", "++schedule.epochs=${seed}", "++output.root='a b'",
    "++sparsity.update={start: 0.2}", "++tracking.tags=[]", "++new=1", "++model=mlp", "+model=lenet_5", "+data=[mnist]",
    "~tracking", "~model", "~sparsity=rigl_itop", "~sparsity=dense", "~data.size", "~tracking.tags", "~seed=0",
    "+schedule@schedule=mnist", "+model@model=lenet_5", "sparsity@sparsity=static", "+sparsity@other=static",
    "+tracking@_global_=none", "model@data=mlp", "+data@model=mnist", "seed@x=3", "~schedule@schedule",
    "+schedule@_global_.schedule=rigl_cifar", "hydra/launcher@_global_.hydra.launcher=slurm",
]  # fmt: skip


def an_override(source: random.Random) -> str:
    kind = source.choices(["value", "group", "node", "other"], [10, 4, 2, 1])[0]
    if kind == "group":
        group = source.choice(list(GROUPS))
        return f"{group}={source.choice(GROUPS[group])}"
    if kind != "value":
        return source.choice(NODES if kind == "node" else OTHERS)
    kind = source.choices(list(KEYS), [4, 4, 4, 3, 1])[0]
    values = VALUES.get(kind, [])
    # Most users mean well: what comes first is right.
    good = source.choice(INTERPOLATIONS[kind]) if source.random() < 0.4 or not values else source.choice(values[:3])
    return f"{source.choice(KEYS[kind])}={good if source.random() < 0.9 or not values else source.choice(values)}"


def a_command(source: random.Random) -> list[str]:
    command = [an_override(source) for _ in range(source.randint(1, 6))]
    if source.random() < 0.3:  # a key or a whole override that is there already
        again = source.choice(command)
        key = again.partition("=")[0].lstrip("+")
        kinds = [kind for kind, keys in KEYS.items() if key in keys and kind in VALUES]
        values = GROUPS.get(key) or [value for kind in kinds for value in VALUES[kind][:3]]
        command.insert(source.randint(0, len(command)), f"{key}={source.choice(values)}" if values else again)
    return command


def by_hydra(overrides: list[str]) -> str | None:
    """What Hydra composes of overrides, None if it refuses them; as text, where 1 is neither 1.0 nor true."""
    try:
        config = hydra.compose("config", overrides=[text for text in overrides if not text.startswith("hydra.")])
        OmegaConf.resolve(config)
        return to_yaml(OmegaConf.to_object(config))
    except Exception:
        return None


def by_us(composer: Composer, overrides: list[str]) -> str | None:
    try:
        return to_yaml(composition._to_typed(composer.compose(overrides)))
    except ConfigError as error:  # and nothing else
        assert all(error.problems)
        return None


def rewritten(overrides: list[str]) -> list[str] | None:
    """What the sweeper makes of overrides; None if it cannot, or if what it makes has another value or cannot be read."""
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(overrides)
        ((cell,),) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        last = {override.get_key_element(): override for override in parsed}
        again = {override.get_key_element(): override for override in parser.parse_overrides(cell)}
    except Exception:
        return None
    return cell if all(repr(again[key].value()) == repr(last[key].value()) for key in last) else None


def test_random_commands_are_those_of_hydra():
    source = random.Random(20)
    composed = compared = rewrote = 0
    for first in range(0, COMMANDS, 5):
        commands = [a_command(source) for _ in range(min(5, COMMANDS - first))]
        with _hydra(CONF):
            composer = Composer()
            for typed in [text for command in commands for text in (command, command[::-1])]:
                expected = by_hydra(typed)
                assert by_us(composer, typed) == expected, typed
                composed += expected is not None
                cell = rewritten(typed)
                if cell is not None:
                    if len(cell) < len(typed):  # of what is given twice, the sweeper takes the last
                        expected = by_hydra(cell)
                    assert by_us(composer, cell) == expected, (typed, cell)
                    rewrote += cell != typed
                compared += 1
    print(f"\n{compared} commands compared, {composed} compose, {rewrote} differ as the sweeper writes them")
    assert compared == 2 * COMMANDS
    assert composed > compared / 2
    assert rewrote > 0.25 * compared
