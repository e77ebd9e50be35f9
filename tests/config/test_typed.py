"""Text stays what was typed, a path needs no quotes, a key is given once: where a command departs from plain Hydra."""

import random
import shlex

import hydra
import pytest
from omegaconf import OmegaConf

from dst.config.compose import _hydra, compose, compose_command
from dst.config.schema import Config, ConfigError, flatten, get
from dst.config.typed import as_text, at_home, for_hydra, keys_given, parse_one, path_keys, text_keys
from tests.composed import compose_cells
from tests.config.test_compose import CONF, a_command
from tests.messages import malformed


def value(override: str):
    """What a key becomes by an override as it is typed, without all other keys."""
    return parse_one(for_hydra(override)).value()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1e3",
            "1E3",
            "-1e3",
            "1e-3",
            ".5",
            "1.",
            "+1",
            "1_000",
            "true",
            "True",
            "TRUE",
            "false",
            "010",
            "0x10",
            "12",
        ),
        *(
            "1.0",
            "nan",
            "INF",
            "yes",
            "no",
            "on",
            "off",
            "None",
            "~",
            "~/x",
            "/tmp/é",
            "café",
            "日本",
            "a#b",
            "a;b&c<d>",
        ),
        *("a!b", "a^b", "`a`", "é 1e3", "2024-01-01", "1:30", "a@b", "a%b", "1é", "é\\b", "nulé", "${seed}/é", "a\nb"),
    ],
)
def test_text_is_what_was_typed(text):
    for key in ("output.group", "+output.group", "tracking.notes"):
        found = value(f"{key}={text}")
        assert str(found) == text
        assert found == text or isinstance(found, int | float)  # and its text is the same
    assert [str(item) for item in value(f"tracking.tags=[a,{text}]")] == ["a", text]
    assert {key: str(item) for key, item in value(f"output={{group: {text}}}").items()} == {"group": text}
    for swept in (f"{text},b", f"choice({text},b)"):
        override = parse_one(for_hydra(f"output.group={swept}"))
        assert [str(getattr(item, "text", item)) for item in override.sweep_iterator()] == [text, "b"]


def test_what_hydra_reads_as_it_was_typed_is_left_as_it_is():
    same = [
        *("output.group=a b", "output.group=a\\,b", "output.group='1e3'", 'output.group="é"', "output.group=null"),
        *(
            "output.group=${oc.env:X,é}",
            "output.group=str(1e3)",
            "output.group=sort(2,10)",
            "output.group=",
            "seed=1e3",
        ),
        *("schedule.lr.peak=1e-1", "model.hidden=[1e1]", "hardware.compile=true", "output.group=12", "seed=range(0,9)"),
        *("~seed", "seed", "", "output.group=a=é", "seed=[[" + "[" * 500, "nothing.here=1e3"),
    ]
    assert [for_hydra(text) for text in same] == same
    assert value("output.group=null") is None  # which only a key that may be null takes; 'null' is the text
    assert value("output.group='null'") == "null"


def test_a_number_that_is_no_text_is_still_one_beside_a_letter_that_hydra_lacks():
    assert for_hydra("output={group: é, new: 1e3}") == "output={group: 'é', new: 1e3}"
    with pytest.raises(ConfigError, match=r"seed='é': Value 'é' of type 'str' could not be converted to Integer"):
        compose_command(CONF, ["seed=é"], multirun=False)
    with pytest.raises(ConfigError, match=r"unknown key 'sede': did you mean 'seed'\?"):
        compose_command(CONF, ["sede=~"], multirun=False)


def test_every_text_of_the_schema_is_known():
    """Text of a slot's members, of lists, of groups; and no number."""
    assert {
        "output.group",
        "data.target",
        "tracking.tags",
        "sparsity.init.path",
        "sparsity",
        "experiment",
    } <= text_keys()
    assert not {"seed", "schedule.lr.peak", "model.hidden", "hardware.compile", "sparsity.update.every"} & text_keys()
    assert set(path_keys()) == {
        *("model.weights", "data.root", "data.cache", "data.path", "output.root"),
        *("sparsity.init.path", "sparsity.distribution.path"),
    }
    assert set(path_keys()) < text_keys()


@pytest.mark.parametrize("typing", ["~/x y", "'~/x y'", '"~/x y"', "~/x\\ y"])
def test_home_is_where_a_path_begins_with_it(typing, monkeypatch):
    monkeypatch.setenv("HOME", "/home/é")
    for multirun in (False, True):
        command = [f"output.root={typing}", "data.path=~/x.csv", "output.group=~"]
        ((_, config),) = compose_cells(CONF, command, multirun=multirun)
        assert config.output.root == "/home/é/x y"
        assert config.data.root == "/home/é/x y/.datasets"  # which the files say by ${output.root}
        assert (config.data.path, config.output.group) == ("/home/é/x.csv", "~")


def test_home_of_a_file_and_of_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    config = Config()
    for key in path_keys():
        node = get(config, key.rpartition(".")[0])
        setattr(node, key.rpartition(".")[2], "~/p")
    assert {get(at_home(config), key) for key in path_keys()} == {"/home/x/p"}
    config.output.root = "./~"
    assert at_home(config).output.root == "./~"


def test_a_home_that_there_is_not_is_no_folder():
    config = Config()
    config.data.root = "~nobody.of.this.name/x"
    with pytest.raises(ConfigError) as error:
        at_home(config)
    assert error.value.problems == [
        "data.root=~nobody.of.this.name/x: there is no such home folder; for a folder of this name, write "
        "./~nobody.of.this.name/x"
    ]


@pytest.mark.parametrize(
    "text", ["/tmp/a=b", "/tmp/(a)", "/tmp/a(b)", "it's", '/tmp/a"b', "[/tmp/é", "a,b=c", "/tmp/[é]"]
)
def test_a_text_that_cannot_be_read_is_shown_as_it_can_be_pasted(text):
    with pytest.raises(ConfigError) as error:
        compose_command(CONF, [f"output.root={text}"], multirun=False)
    (problem,) = error.value.problems
    assert malformed(problem) is None
    pasted = shlex.split(problem.partition(" Write as text: ")[2])
    ((_, config),) = compose_cells(CONF, pasted, multirun=False)
    assert config.output.root == text


def test_a_text_with_a_comma_is_shown_as_it_can_be_pasted():
    with pytest.raises(ConfigError, match=r"to sweep over them, add --multirun \(-m\); as one text: ") as error:
        compose_command(CONF, ["output.root=/tmp/a,b", "seed=0"], multirun=False)
    pasted = shlex.split(error.value.problems[0].partition("as one text: ")[2])
    assert compose_cells(CONF, pasted, multirun=True)[0][1].output.root == "/tmp/a,b"
    with pytest.raises(ConfigError, match=r"seed=0,1 gives several values: to sweep over them, add --multirun \(-m\)$"):
        compose_command(CONF, ["seed=0,1"], multirun=False)


# ---------------------------------------------------------------------------------------------------------------------
# What is given twice

TWICE = {
    "seed": ["seed=0,1", "seed=5"],
    "output.group": ["output.group=a", "++output.group=a"],
    "sparsity": ["sparsity=rigl", "sparsity=set"],
    "sparsity.density": ["sparsity.density=0.1", "sparsity={density: 0.2}"],
    "sparsity.update.every": ["sparsity.update={every: 4}", "sparsity={update: {every: 5}, label: x}"],
    "hydra/launcher": ["hydra/launcher=local", "hydra/launcher=slurm"],
    "tracking.notes": ["+tracking.notes=a", "tracking.notes='b c'"],
}


@pytest.mark.parametrize(("key", "texts"), TWICE.items())
def test_a_key_given_twice_is_refused_and_both_are_shown(key, texts):
    for multirun in (False, True):
        with pytest.raises(ConfigError) as error:
            compose_command(CONF, ["model=mlp", *texts], multirun=multirun)
        assert f"{texts[0]} and {texts[1]}: {key} is given twice; leave one" in error.value.problems
    with pytest.raises(ConfigError, match="twice"):
        compose(CONF, texts)


def test_what_else_is_given_twice():
    with pytest.raises(ConfigError, match=r"^seed=1: seed is given twice; leave one$"):
        compose_command(CONF, ["seed=1", "seed=1"], multirun=False)
    with pytest.raises(ConfigError, match=r"^output=\{group: a, group: b\}: output.group is given twice; leave one$"):
        compose_command(CONF, ["output={group: a, group: b}"], multirun=False)
    with pytest.raises(ConfigError, match=r"seed=1 and \+seed=2 and seed=3,4: seed is given 3 times; leave one"):
        compose_command(CONF, ["seed=1", "+seed=2", "seed=3,4"], multirun=True)
    with pytest.raises(ConfigError, match=r"^hydra.searchpath=\[a\] and hydra.searchpath=\[b\]: .* given 2 times"):
        compose_command(CONF, ["hydra.searchpath=[a]", "hydra.searchpath=[b]"], multirun=False)


def test_what_is_not_given_twice():
    """An option of a group and a key of it; an experiment's key and the user's; other keys of one node."""
    fine = [
        *("+experiment=itop/rigl", "sparsity=rigl", "sparsity.density=0.2", "sparsity.update={every: 4}"),
        *("sparsity.update={stop: 0.5}", "sparsity.scope.include=['*']", "model={hidden: null}"),
    ]
    ((_, config),) = compose_cells(CONF, fine, multirun=False)
    assert (config.sparsity.density, config.sparsity.update.every, config.sparsity.update.stop) == (0.2, 4, 0.5)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a=1", ["a"]),
        ("++a.b=1,2", ["a.b"]),
        ("~a", ["a"]),
        ("a={}", ["a"]),
        ("a={b: 1, c: {d: 2, e: [3]}}", ["a.b", "a.c.d", "a.c.e"]),
        ("a={b: 1},{b: 2, c: 3}", ["a.b", "a.c"]),
        ("a=[", []),
    ],
)
def test_the_keys_that_an_override_gives(text, keys):
    assert keys_given(text) == keys


# ---------------------------------------------------------------------------------------------------------------------
# All departures from plain Hydra, by name


def has_a_key_twice(command: list[str]) -> bool:
    keys = [key for text in command for key in keys_given(for_hydra(text))]
    return len(keys) > len(set(keys))


DEPARTURES = {
    "one key given twice is refused": has_a_key_twice,
    "text is what was typed": lambda command: [for_hydra(text) for text in command] != command,
}


def by_hydra(overrides: list[str]) -> dict | None:
    try:
        config = hydra.compose("config", overrides=overrides)
        OmegaConf.resolve(config)
        return flatten(OmegaConf.to_object(config))
    except Exception:
        return None


def test_where_a_command_is_another_one_than_in_hydra_the_departure_has_a_name():
    source, departed, same = random.Random(22), dict.fromkeys(DEPARTURES, 0), 0
    odd = [["output.group=1e3"], ["output.group=é"], ["seed=1", "seed=2"], ["output.group=true", "seed=3"]]
    for drawn in [*odd, *(a_command(source) for _ in range(12))]:
        command = [text for text in drawn if not text.startswith(("~", "hydra", "+sparsity", "+model"))]
        with _hydra(CONF):
            theirs = by_hydra(command)
        try:
            ours = flatten(compose_command(CONF, command, multirun=False).cells[0].config)
        except ConfigError:
            ours = None
        named = [name for name, applies in DEPARTURES.items() if applies(command)]
        if ours == theirs:
            same += 1
        elif theirs is None or ours is not None:
            assert named, command
        departed |= {name: departed[name] + 1 for name in named}
    assert same > 3
    assert all(departed.values()), departed


# ---------------------------------------------------------------------------------------------------------------------
# Lists of texts, and references


@pytest.mark.parametrize("text", ["[a=b,c]", "[it's, x(1)]", "a=b,c", "[a,]", '["x y",c=d]'])
def test_a_list_of_texts_that_cannot_be_read_is_shown_as_it_can_be_pasted(text):
    wanted = {"[it's, x(1)]": ["it's", "x(1)"], "[a,]": ["a"], '["x y",c=d]': ["x y", "c=d"]}.get(text, ["a=b", "c"])
    pasted = shlex.split(as_text(f"tracking.tags={text}"))
    ((_, config),) = compose_cells(CONF, pasted, multirun=False)
    assert config.tracking.tags == wanted
    with pytest.raises(ConfigError, match=r" Write as text: 'tracking.tags=\["):
        compose_command(CONF, [f"tracking.tags={text}"], multirun=False)


def test_what_has_a_comma_in_quotes_is_not_cut_there():
    assert as_text('tracking.tags=["a,b",c=d]') is None


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("output.group=[a]", """output.group is a text, not a list or a mapping; write 'output.group="[a]"'"""),
        ("output.group={a:b}", """output.group is a text, not a list or a mapping; write 'output.group="{a:b}"'"""),
        (
            "hardware.slurm.constraint=[a&b]",
            """is a text, not a list or a mapping; write 'hardware.slurm.constraint="[a&b]"'""",
        ),
        ("tracking.tags=é", """tracking.tags is a list of texts; write 'tracking.tags=["é"]'"""),
        ("tracking.tags=a,b", """tracking.tags is a list of texts; write 'tracking.tags=["a","b"]'"""),
    ],
)
def test_a_list_for_a_text_and_a_text_for_a_list_are_told_with_the_command_that_works(typed, told):
    for multirun in (False, True):
        with pytest.raises(ConfigError) as error:
            compose_command(CONF, [typed], multirun=multirun)
        (problem,) = error.value.problems
        assert problem.startswith(f"{typed}: ")
        assert problem.endswith(told)
        assert malformed(problem) is None


@pytest.mark.parametrize("typed", ["sparsity=rigl,set", "hardware.device=cpu,cuda", "data.name=digits,mnist"])
def test_a_choice_is_not_offered_as_a_text(typed):
    assert as_text(typed) is None


def test_a_reference_that_leads_nowhere_is_told_with_its_key():
    for typed, told in {
        "output.root=${nope}": "output.root=${nope}: Interpolation key 'nope' not found",
        "data.mean=[${nope}]": "data.mean=['${nope}']: Interpolation key 'nope' not found",
        "seed=${seed}": "seed=${seed}: Recursive interpolation detected",
    }.items():
        for command in ([typed], [typed, "sparsity.density=0.1,0.2"]):
            with pytest.raises(ConfigError) as error:
                compose_command(CONF, command, multirun=len(command) > 1)
            assert error.value.problems == [told]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("sparsity.drop=random", "sparsity.drop has keys of its own, of which one may be meant: sparsity.drop.name, "),
        ("schedule.lr=0.1,0.2", "schedule.lr has keys of its own, of which one may be meant: schedule.lr.name, "),
        ("hardware.slurm=a", "hardware.slurm has keys of its own, of which one may be meant: hardware.slurm.timeout"),
    ],
)
def test_a_value_for_a_place_that_has_keys_is_told_with_these(typed, told):
    with pytest.raises(ConfigError) as error:
        compose_command(CONF, [typed], multirun=True)
    assert error.value.problems[0].startswith(f"{typed}: {told}")
    ((_, config),) = compose_cells(CONF, ["sparsity.drop={name:random}"], multirun=False)
    assert config.sparsity.drop.name == "random"
