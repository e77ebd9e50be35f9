"""Composing many cells without repetition gives what Hydra gives of each by itself."""

import os
import random
import shutil
from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dst.config import compose as composition
from dst.config.compose import (
    Composer,
    _hydra,
    compose,
    compose_command,
    compose_each,
    show,
    to_yaml,
)
from dst.config.identity import run_id
from dst.config.schema import Config, ConfigError, flatten
from dst.records.label import labelled
from tests.composed import compose_cells
from tests.messages import malformed

CONF = Path(__file__).parents[2] / "conf"

COMMANDS = int(os.environ.get("DST_COMMANDS", "60"))
"""How many random commands are compared with Hydra, which takes a fifth of a second for each: CI has time for few.

All of them: ``DST_COMMANDS=2400 python -m pytest tests/config/test_compose.py -k random -s``.
"""

INTERPOLATIONS = {
    "int": ["${seed}", "'${schedule.epochs}'", "${oc.decode:'3'}", "${oc.select:seed}", '"${data.split_seed}"'],
    "float": ["${schedule.lr.peak}", "${seed}", "${oc.decode:0.25}", "'${sparsity.density}'", "${oc.env:NONE,0.5}"],
    "text": ["${output.group}", "x_${seed}", "'a ${seed} b'", "${oc.env:HOME}", "${oc.env:NONE,'a, b'}", "${.group}"],
    "list": ["${hardware.slurm.setup}", "${tracking.tags}", "${oc.create:[1,2]}"],
    "node": ["${sparsity.redistribute}", "${sparsity.grow}", "${oc.create:{name: x}}"],
}
VALUES = {
    "int": ["3", "17", "'5'", "int(4.0)", "1e3", "many", "null"],
    "float": ["0.3", "1", "1e-3", "'0.7'", ".5", "float(2)", "null", "true"],
    "text": ["a", "'a b'", '"it\'s"', "a\\ b", "''", "", "null", "'null'", "3", "true", "a\\,b", "/x/y:z", "\\$\\{a\\}",
             "'\\${seed}'", "'[a, b]'", "str(3)", "\\\\",
             "'${oc.env:NONE,\\'a\\'}'", "a ${b"],
    "list": ["[]", "[8,16]", "[1]", "['2',3]", "[a,'b c']", "[${seed},2]", "null", "[null]", "[[1]]"],
}  # fmt: skip
KEYS = {
    "int": ["seed", "data.split_seed", "schedule.epochs", "schedule.batch_size", "sparsity.update.every", "data.size"],
    "float": ["schedule.lr.peak", "schedule.label_smoothing", "sparsity.density", "sparsity.drop_fraction.initial"],
    "text": ["output.root", "output.group", "data.root", "sparsity.label", "sparsity.grow.name", "tracking.notes"],
    "list": ["model.hidden", "tracking.tags", "data.mean", "sparsity.scope.include", "hardware.slurm.setup"],
    "node": ["sparsity.grow", "sparsity.redistribute"],
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
    "+model@sparsity.grow=lenet_5", "model@sparsity.grow=vgg_c", "+model@data=lenet_5", "~model@data",
    "+model@sparsity.drop=lenet_5", "+model@model=lenet_5", "+sparsity@other=static", "model@data=mlp", "seed@x=3",
    "+experiment=itop/rigl", "+experiment=itop/set_5x", "+experiment=[itop/set,itop/dense]", "experiment=itop/set",
    "schedule.lr=${schedule.optimizer}", "sparsity.grow=${sparsity.drop}", "tracking.tags=${model.hidden}",
]  # fmt: skip


def an_override(source: random.Random) -> str:
    kind = source.choices(["value", "group", "node", "other"], [10, 4, 2, 2])[0]
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
        return to_yaml(composer.config(overrides))
    except ConfigError:  # and nothing else
        return None


def rewritten(overrides: list[str]) -> list[str] | None:
    """What Hydra's sweeper makes of overrides; None if it cannot, or if that has another value or cannot be read."""
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


def test_a_sweep_of_one_cell_is_the_single_run():
    source = random.Random(21)
    composed = 0
    for _ in range(max(12, COMMANDS // 10)):
        command = a_command(source)
        try:
            ((_, single),) = compose_cells(CONF, command, multirun=False)
        except ConfigError:
            continue
        assert [config for _, config in compose_cells(CONF, command, multirun=True)] == [single], command
        composed += 1
    assert composed > 3


def test_a_value_refers_to_what_was_overridden():
    overrides = ["seed=3", "data.split_seed=${seed}", "sparsity=static"]
    for command in (overrides, overrides[::-1]):
        for multirun in (False, True):
            ((_, config),) = compose_cells(CONF, command, multirun=multirun)
            assert (config.seed, config.data.split_seed) == (3, 3)


def test_no_cell_takes_a_value_of_its_neighbour():
    swept = ["sparsity=set_itop", "schedule.lr.peak=0.2,0.3", "sparsity.drop_fraction.initial=${schedule.lr.peak}"]
    for command in (swept, swept[::-1]):
        configs = [config for _, config in compose_cells(CONF, command, multirun=True)]
        assert [config.sparsity.drop_fraction.initial for config in configs] == [0.2, 0.3]
        assert methods(*command) == ["set_itop drop_fraction.initial=0.2", "set_itop drop_fraction.initial=0.3"]


def methods(*overrides: str, conf: Path = CONF) -> list[str]:
    """How the methods of a sweep are called; a single run has the same names."""
    cells = compose_command(conf, overrides, multirun=True).cells
    if len(cells) == 1:
        assert compose_command(conf, overrides, multirun=False).cells == cells
    return [labelled(cell.config.sparsity.label, cell.changed) for cell in cells]


def test_what_is_said_behind_a_label_tells_two_methods_apart_and_nothing_else():
    assert methods("sparsity=rigl", "sparsity={drop: {name: random}}") == ["rigl drop=random"]
    assert methods("sparsity=rigl", "sparsity.grow.name=random,gradient") == ["rigl grow=random", "rigl"]
    assert methods("sparsity=rigl", "sparsity.density=0.3", "schedule.update_every=7", "seed=0,1") == ["rigl", "rigl"]
    assert methods("sparsity=rigl", "sparsity.drop_fraction.floor=0", "sparsity.update.stop=0.75") == ["rigl"]
    assert methods("sparsity=rigl", "sparsity.drop_fraction.initial=0.5", "sparsity.grow.name=random") == [
        "rigl grow=random drop_fraction.initial=0.5"
    ]
    assert methods("sparsity.update.start=${sparsity.density}") == ["rigl_itop update.start=0.1"]
    emptied = "sparsity.drop_fraction={name: none, initial: null, floor: null, horizon: null}"
    threshold = ["sparsity.drop.name=threshold", "sparsity.drop.quantile=0.1", emptied]
    assert methods(*threshold) == ["rigl_itop drop=threshold drop.quantile=0.1 drop_fraction=none"]
    # What the method is compared with needs no value that the method gives.
    crossed = ["schedule.update_every=${sparsity.update.every}", "sparsity.update.every=12", "sparsity.grow.name=none"]
    assert methods("sparsity=rigl", *crossed) == ["rigl grow=none"]


def test_a_label_that_is_given_stands_alone_and_what_was_changed_is_known():
    given = ["sparsity={drop: {name: random}, label: mine}"], ["sparsity.label=mine", "sparsity.drop.name=random"]
    for overrides in given:
        ((_, config, changed, _),) = compose_command(CONF, ["sparsity=rigl", *overrides], multirun=False).cells
        assert (config.sparsity.label, changed) == ("mine", {"sparsity.label": "mine", "sparsity.drop.name": "random"})
        assert methods("sparsity=rigl", *overrides) == ["mine"]
    assert methods("sparsity=rigl", "sparsity.label=rigl", "sparsity.drop.name=random") == ["rigl"]


@pytest.fixture
def own_conf(tmp_path):
    """A folder of config files to which methods and experiments can be added."""
    return shutil.copytree(CONF, tmp_path / "conf")


def test_what_a_file_of_an_experiment_changes_in_a_method_is_said_too(own_conf):
    text = "# @package _global_\ndefaults:\n  - override /sparsity: rigl\nsparsity:\n  grow:\n    name: random\n"
    (own_conf / "experiment" / "one.yaml").write_text(f"{text}  density: 0.2\n")
    assert methods("+experiment=one", conf=own_conf) == ["rigl grow=random"]
    assert methods("+experiment=one", "seed=0,1", conf=own_conf) == ["rigl grow=random"] * 2
    assert methods("+experiment=one", "sparsity.grow.name=gradient", conf=own_conf) == ["rigl"]
    assert methods("+experiment=one", "sparsity.drop.name=random", conf=own_conf) == ["rigl drop=random grow=random"]
    (own_conf / "experiment" / "named.yaml").write_text(f"{text}  label: mine\n")
    assert methods("+experiment=named", conf=own_conf) == ["mine"]


def test_a_method_that_refers_to_the_rest_of_a_config_is_compared_in_the_surroundings_of_the_run(own_conf):
    text = (own_conf / "sparsity" / "rigl.yaml").read_text()
    (own_conf / "sparsity" / "tied.yaml").write_text(text.replace("initial: 0.3", "initial: ${schedule.lr.peak}"))
    peaks = ["sparsity=tied", "schedule.lr.peak=0.2,0.3"]
    assert methods(*peaks, conf=own_conf) == ["rigl", "rigl"]
    assert methods(*peaks, "sparsity.drop_fraction.initial=0.2", conf=own_conf) == [
        "rigl",
        "rigl drop_fraction.initial=0.2",
    ]


@pytest.mark.parametrize("left", ["???", "${no.such}"])
def test_what_the_file_of_a_method_leaves_to_the_user_is_the_users(own_conf, left):
    text = (own_conf / "sparsity" / "rigl.yaml").read_text()
    (own_conf / "sparsity" / "open.yaml").write_text(text.replace("initial: 0.3", f"initial: {left}"))
    (told,) = methods("sparsity=open", "sparsity.drop_fraction.initial=0.2", conf=own_conf)
    assert told.startswith("rigl ")
    assert " drop_fraction.initial=0.2" in told


def test_names_of_one_composition_are_one_run():
    """All that are in the catalogue; a sweep over both says so."""
    names = [path.stem for path in sorted((CONF / "sparsity").glob("*.yaml"))]
    cells = compose_command(CONF, [f"sparsity={','.join(names)}"], multirun=True).cells
    alike: dict[str, list[str]] = {}
    for name, cell in zip(names, cells, strict=True):
        assert (cell.config.sparsity.label, cell.changed) == (name, {})
        alike.setdefault(run_id(cell.config), []).append(name)
    assert [pair for pair in alike.values() if len(pair) > 1] == [["dst", "rigl_itop"], ["random_pruning", "static"]]
    for names in alike.values():
        single = {run_id(compose_command(CONF, [f"sparsity={name}"], multirun=False).cells[0].config) for name in names}
        assert single <= alike.keys()
        assert len(single) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [("${oc.env:NOWHERE,'a, b'}", "a, b"), ("str(3)", "3"), ("'a b'", "a b"), ("${seed}_${seed}", "0_0"), ("''", "")],
)
def test_a_value_swept_is_the_value_typed(value, expected):
    cells = compose_cells(CONF, [f"tracking.notes={value},z"], multirun=True)
    assert [config.tracking.notes for _, config in cells] == [expected, "z"]
    ((overrides, config),) = compose_cells(CONF, [f"tracking.notes={value}"], multirun=True)
    assert (overrides, config.tracking.notes) == ([f"tracking.notes={value}"], expected)


def test_all_cells_have_one_moment():
    """As in Hydra's own sweeps: else a group named after the time would be torn apart."""
    cells = compose_cells(CONF, ["output.group=${now:%f}", "seed=range(0,4)", "sparsity={density: 0.1}"], multirun=True)
    assert len({config.output.group for _, config in cells}) == 1


def test_mappings_of_other_keys_are_merged_in_a_sweep():
    def sparsity(*overrides: str) -> list[tuple]:
        cells = compose_cells(CONF, overrides, multirun=True)
        names = methods(*overrides)
        return [(n, c.sparsity.update.every, c.sparsity.update.start) for n, (_, c) in zip(names, cells, strict=True)]

    one, two = "sparsity.update={every: 4}", "sparsity.update={start: 0.1}"
    assert sparsity("sparsity=static", one, two) == [("static update.start=0.1", 4, 0.1)]
    assert sparsity("sparsity={label: mine}", "sparsity=rigl", "sparsity.update.every=6,7") == [
        ("mine", every, 0.0) for every in (6, 7)
    ]


def test_options_of_a_group_are_swept_by_a_pattern_and_quoted():
    cells = compose_cells(CONF, ["model=glob(lenet*)", "data=mnist"], multirun=True)
    assert [config.model.name for _, config in cells] == ["lenet_300_100", "lenet_5"]
    cells = compose_cells(CONF, ["sparsity=glob(rigl*)", "seed=0"], multirun=True)
    assert [config.sparsity.label for _, config in cells] == ["rigl", "rigl_itop"]
    cells = compose_cells(CONF, ["+experiment=glob(itop/set*)"], multirun=True)
    assert [overrides for overrides, _ in cells] == [["+experiment=itop/set"], ["+experiment=itop/set_5x"]]
    cells = compose_cells(CONF, ["sparsity='static','rigl'"], multirun=True)
    assert [config.sparsity.label for _, config in cells] == ["static", "rigl"]


def test_cells_of_hydras_own_sweeper():
    r"""Which writes ``${x}`` as ``$\{x\}``."""
    cells = [[f"seed={seed}", "data.split_seed=$\\{seed\\}", "tracking.notes=a\\ b"] for seed in (4, 5)]
    found = [(cell.config.data.split_seed, cell.config.tracking.notes) for cell in compose_each(CONF, cells)]
    assert found == [(4, "a b"), (5, "a b")]
    assert compose_each(CONF, []) == []


def test_what_is_not_hydras_stops_a_sweep(monkeypatch):
    """First and last cell are compared at every sweep."""
    original = Composer.config

    def forgetful(self: Composer, overrides: list[str]) -> Config:
        return original(self, [text for text in overrides if text != "seed=2"])

    monkeypatch.setattr(Composer, "config", forgetful)
    with pytest.raises(RuntimeError, match=r"(?s)internal error: seed=2 is composed otherwise.*\n-seed: 2\n\+seed: 0"):
        compose_cells(CONF, ["seed=0,1,2"], multirun=True)
    with pytest.raises(RuntimeError, match="internal error: seed=2 "):
        compose_cells(CONF, ["seed=2,1"], multirun=True)
    with pytest.raises(RuntimeError, match="internal error: seed=2 "):
        compose_each(CONF, [["seed=2"]])


BROKEN = [
    ["seed=${seed}"],  # RecursionError
    ["seed=${data.split_seed}", "data.split_seed=${seed}"],
    ["seed=${no.such}"],
    ["seed=${hydra.job.num}"],
    ["seed=${nothing:1}"],
    ["seed=${"],
    ["output.root=${oc.env:NO_SUCH_VARIABLE}"],
    ["output.root=???"],
    ["model.hidden=[a]"],
    ["model.hidden={a: 1}"],
    ["schedule.lr=3"],
    ["schedule.lr=null"],
    ["schedule.lr={paek: 3}"],
    ["data={sise: 3}"],
    ["seed=choice(1,range(2,4))"],  # AssertionError
    ["seed=range(1,0.5,0)"],
    ["seed=range(3,1)"],  # no cell at all
    ["seed=interval(0,1)"],
    ["seed=sort(1,a)"],  # TypeError
    ["seed=int(many)"],
    ["model=glob(none*)"],
    ["sparsity=null"],  # ValueError
    ["sparsity="],
    ["sparsity=[static,rigl]"],
    ["+sparsity=static"],
    ["++sparsity=static"],
    ["model@data=mlp"],
    ["+sparsity@sparsity.grow=static"],
    ["+seed=3"],
    ["++seed=x"],
    ["=3"],
    ["seed"],
    [""],
    ["seed=[[" + "[" * 500],
]


@pytest.mark.parametrize("overrides", BROKEN, ids=lambda overrides: overrides[0][:40])
def test_whatever_hydra_raises_is_an_error_of_the_config(overrides):
    for multirun in (False, True):
        with pytest.raises(ConfigError) as error:
            compose_cells(CONF, [*overrides, "data.val_fraction=0.2"], multirun=multirun)
        assert all(len(problem) > 10 for problem in error.value.problems), error.value.problems
        assert [problem for problem in error.value.problems if malformed(problem)] == []


@pytest.mark.parametrize("error", [AssertionError(), ValueError("odd"), KeyError("x"), RecursionError("too deep")])
def test_exceptions_of_any_kind_are_told(monkeypatch, error):
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(composition, "hydra_compose", failing)
    for action in (
        lambda: compose(CONF, []),
        lambda: compose_cells(CONF, [], multirun=False),
        lambda: compose_cells(CONF, ["seed=0,1"], multirun=True),
        lambda: compose_each(CONF, [["seed=1"]]),
    ):
        with pytest.raises(ConfigError) as told:
            action()
        assert str(error) in told.value.text()
        assert len(told.value.problems) == 1
        assert told.value.problems[0]


def test_a_part_that_cannot_be_shown():
    config = compose(CONF, ["seed=${no.such}"], resolve=False)
    for package, words in (("seed", "no.such"), ("sede", "did you mean 'seed'"), ("seed.[", "--package")):
        with pytest.raises(ConfigError, match=words):
            show(config, package)


def test_a_thousand_cells_compose_a_few_times(monkeypatch):
    calls = []
    original = composition.hydra_compose
    monkeypatch.setattr(
        composition, "hydra_compose", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    overrides = ["sparsity=set_itop,rigl", "sparsity.density=0.1,0.2", "schedule.lr.peak=0.1,0.2", "seed=range(0,125)"]
    cells = compose_command(CONF, overrides, multirun=True).cells
    assert len(cells) == 1000
    assert len(calls) == 4  # two methods, and first and last cell as Hydra has them
    assert [cell.config.seed for cell in cells[:3]] == [0, 1, 2]
    assert len({repr(flatten(cell.config)) for cell in cells}) == 1000


def test_a_choice_that_cannot_be_composed_is_tried_once(monkeypatch):
    calls = []
    original = composition.hydra_compose
    monkeypatch.setattr(
        composition, "hydra_compose", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    with pytest.raises(ConfigError) as error:
        compose_cells(CONF, ["+model=lenet_5", "seed=range(0,100)"], multirun=True)
    assert len(error.value.problems) == len(calls) == 1


def test_cells_share_nothing():
    with _hydra(CONF):
        composer = Composer()
        one, other = (composer.config(["model.hidden=[8]"]) for _ in range(2))
    one.model.hidden.append(1)
    one.sparsity.density = 0.9
    assert (other.model.hidden, other.sparsity.density) == ([8], 0.1)


def test_a_value_of_the_wrong_type_is_told_with_its_key():
    with pytest.raises(ConfigError, match=r"schedule\.epochs"):
        compose_command(CONF, ["schedule.epochs=1,many", "seed=0,1"], multirun=True)


def test_the_launcher_is_a_plugin_of_hydra():
    found = compose_command(CONF, ["hardware=slurm", "hydra.launcher.runs_per_job=4"], multirun=True).launcher
    assert (found.cluster, found.runs_per_job, found.wait) == ("slurm", 4, False)
    found = compose_command(CONF, ["hydra/launcher=local", "hydra.launcher.wait=true"], multirun=True).launcher
    assert (found.cluster, found.wait, found.max_parallel) == ("local", True, None)
    assert compose_command(CONF, ["hardware=slurm", "hydra/launcher=basic"], multirun=True).launcher is None


def test_cells_that_choose_several_launchers_are_refused_unless_one_is_given_for_all():
    """The first cell's would carry out all."""
    with pytest.raises(ConfigError) as error:
        compose_command(CONF, ["seed=0,1", "hardware=cpu,slurm"], multirun=True)
    (told,) = error.value.problems
    assert "(seed=0 hardware=cpu: basic; seed=0 hardware=slurm: slurm); add hydra/launcher=... for all" in told
    found = compose_command(CONF, ["hardware=gpu,slurm", "hydra/launcher=local"], multirun=True)
    assert (found.launcher.cluster, len(found.cells)) == ("local", 2)
    assert compose_command(CONF, ["hardware=slurm,slurm_ddp"], multirun=True).launcher.cluster == "slurm"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("mode: MULTIRUN", "hydra.mode=MULTIRUN"),
        ("sweeper: {params: {seed: '0,1'}}", "hydra.sweeper.params.seed=0,1"),
        ("run: {dir: elsewhere}", "hydra.run.dir=elsewhere"),
        ("job: {chdir: true}", "hydra.job.chdir=True"),
    ],
)
def test_keys_of_hydras_own_are_refused_in_files_as_on_the_command_line(own_conf, own, told):
    with (own_conf / "config.yaml").open("a") as file:
        file.write(f"hydra: {{{own}}}\n")
    for multirun in (False, True):
        with pytest.raises(ConfigError, match=rf"{told}, which would be ignored: .*-m key=value,value"):
            compose_command(own_conf, ["seed=1"], multirun=multirun)
    with pytest.raises(ConfigError, match=told):
        compose(own_conf, [])


def test_settings_of_a_launcher_in_a_file_are_those_of_all_cells_or_refused(own_conf):
    text = "# @package _global_\ndefaults: [override /hardware: slurm, _self_]\nhydra: {launcher: {wait: WAIT}}\n"
    for name, wait in (("waits", "true"), ("waits_too", "true"), ("leaves", "false")):
        (own_conf / "experiment" / f"{name}.yaml").write_text(text.replace("WAIT", wait))
    assert compose_command(own_conf, ["+experiment=waits,waits_too"], multirun=True).launcher.wait is True
    with pytest.raises(ConfigError, match=r"\(\+experiment=waits: slurm; \+experiment=leaves: slurm\)"):
        compose_command(own_conf, ["+experiment=waits,leaves"], multirun=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra/launcher=slrum"], ["slrum", "did you mean 'slurm'"]),
        (["hydra.launcher.wiat=true"], ["hydra.launcher.wiat", "did you mean 'hydra.launcher.wait'"]),
        (["hydra.launcher.wait=true"], ["would be ignored", "hydra/launcher=slurm"]),
        (["hydra/launcher=slurm,local"], ["one launcher"]),
        (["hydra.run.dir=elsewhere"], ["hydra.run.dir", "would be ignored"]),
        (["~hydra/launcher"], ["one launcher"]),
    ],
)
def test_what_is_wrong_with_the_launcher(overrides, words):
    with pytest.raises(ConfigError) as error:
        compose_command(CONF, overrides, multirun=True)
    assert all(word in error.value.text() for word in words)
