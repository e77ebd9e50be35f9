"""A frozen config is read back as it was written, and nothing else is taken for one."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dst.config.compose import to_yaml
from dst.config.schema import Config, ConfigError
from dst.run.verified import from_yaml
from tests.composed import compose_cells

TEXT = to_yaml(Config())
CONF = Path(__file__).parents[2] / "conf"

BOMB = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(30))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is None and no mapping"),
        ("- seed: 0", "it is a list and no mapping"),
        (TEXT[: TEXT.index("\nhardware:")], "seed is missing"),
        (TEXT[: TEXT.index("hidden: null") + 6], "could not find expected ':'"),
        (TEXT.replace("seed: 0", "seeds: 0", 1), "data.split_seeds is no key"),
        (TEXT.replace("\nseed: 0", ""), "seed is missing"),
        (TEXT.replace("    timeout_min: 60\n", ""), "hardware.slurm.timeout_min is missing"),
        (TEXT + "extra: 1\n", "extra is no key"),
        (
            TEXT.replace("  init: default", "  fan_in: true", 1),
            "model.fan_in is no key of a config: model.init=fan_in is",
        ),
        (TEXT + "seed: 0\n", "seed twice"),
        (TEXT.replace("\nseed: 0", "\nseed: ${oc.env:SEED}"), r"seed is '\$\{oc.env:SEED\}', which is no int"),
        (TEXT.replace("\nseed: 0", "\nseed: '0'"), "seed is '0', which is no int"),
        (TEXT.replace("\nseed: 0", "\nseed: true"), "seed is True, which is no int"),
        (TEXT.replace("\nseed: 0", "\nseed: 0.5"), "seed is 0.5, which is no int"),
        (TEXT.replace("hidden: null", "hidden: [1, a]"), r"model.hidden is a list, which is no list\[int\]"),
        (TEXT.replace("\nseed: 0", "\nseed: !!int 0"), "it has a tag"),
        (TEXT.replace("\nseed: 0", "\nseed: !!python/object/apply:os.getpid []"), "it has a tag"),
        (TEXT.replace("\nseed: 0", "\nseed: &here 0"), r"an anchor or an alias \(here\)"),
        (BOMB, r"an anchor or an alias \(a\)"),
        (f"<<: {BOMB}", "an anchor or an alias|expected|not allowed"),
        ("[" * 100_000, "nesting depth|levels deep"),
        ("{a: " * 20 + "0" + "}" * 20, "more than 10 levels deep"),
        (f"{TEXT}---\n{TEXT}", "a single document"),
        ("? [a]\n: 0\n", "unhashable"),
        ("\0", "control characters"),
    ],
)
def test_what_is_no_frozen_config(text, told):
    with pytest.raises(ConfigError, match=told) as error:
        from_yaml(text)
    assert all(problem.startswith("this is no config of a run: ") for problem in error.value.problems)


@pytest.mark.parametrize("overrides", [["sparsity=granet", "tracking.tags=[a]"], ["hardware=slurm_ddp"]])
def test_what_was_composed_is_read_back(overrides):
    ((_, config),) = compose_cells(CONF, overrides, multirun=False)
    assert from_yaml(to_yaml(config)) == config


WORDS = st.one_of(
    st.sampled_from(["${HOME}", r"\${HOME}", "${oc.env:X}", "1e5", "null", "~", "yes", "2001-01-01", "*a", "!!x"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
NUMBERS = st.floats(allow_nan=False)


@given(note=st.none() | WORDS, lines=st.lists(WORDS, max_size=3), number=NUMBERS, seed=st.integers())
def test_every_value_is_read_as_it_stands(note, lines, number, seed):
    config = Config(seed=seed)
    config.tracking.notes, config.hardware.slurm.setup = note, lines
    config.schedule.lr.peak, config.schedule.lr.milestones = number, [number, 0.5]
    assert from_yaml(to_yaml(config)) == config


@given(st.data())
def test_no_key_can_be_left_out(data):
    tree = asdict(Config())
    node, path = tree, []
    while True:
        path.append(data.draw(st.sampled_from(sorted(node))))
        if not isinstance(node[path[-1]], dict) or data.draw(st.booleans()):
            break
        node = node[path[-1]]
    del node[path[-1]]
    with pytest.raises(ConfigError) as error:
        from_yaml(yaml.safe_dump(tree))
    assert error.value.problems == [f"this is no config of a run: {'.'.join(path)} is missing"]
