"""Composing many cells without repetition gives what Hydra gives, one cell after another."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dst.compose import CONFIG_NAME, Composer, _hydra, compose_command, hydra_compose
from dst.config import ConfigError, flatten

CONF = Path(__file__).parents[1] / "conf"

CHOICES = {
    "sparsity": ["set_itop", "granet", "dense", "nm_rigl"],
    "model": ["lenet_5", "mlp"],
    "schedule": ["mnist", "rigl_imagenet"],
    "hardware": ["gpu_bf16", "slurm"],
    "data": ["cifar10", "{name: digits, size: 16}"],
    "seed": ["3", "17"],
    "schedule.update_every": ["7"],
    "output.root": ["/elsewhere"],
    "data.root": ["pictures"],
    "sparsity.density": ["0.3", "null", "${schedule.lr.peak}"],
    "sparsity.update.every": ["12", "${schedule.epochs}"],
    "sparsity.update": ["{every: 4}"],
    "model.hidden": ["[8,16]", "null"],
    "schedule.lr.peak": ["1", "1e-3"],
    "schedule.lr": ["{peak: 0.5}"],
    "hardware.slurm.setup": ["[module load cuda]"],
    "tracking.tags": ["[a,b]"],
    "+schedule.epochs": ["9"],
    "++data.size": ["20"],
}
OVERRIDES = st.lists(
    st.sampled_from([f"{key}={value}" for key, values in CHOICES.items() for value in values]), max_size=7
)


def by_hydra(overrides):
    config = hydra_compose(CONFIG_NAME, overrides=overrides)
    OmegaConf.resolve(config)
    return OmegaConf.to_object(config)


def outcome(action):
    try:
        return action()
    except Exception:
        return "an error"


@settings(max_examples=15)  # Hydra takes its time
@given(cells=st.lists(OVERRIDES, min_size=1, max_size=3))
def test_cells_are_those_of_hydra(cells):
    with _hydra(CONF):
        composer = Composer(CONF)
        for cell in cells:
            assert outcome(lambda: composer.config(cell)) == outcome(lambda: by_hydra(cell)), cell  # noqa: B023


def test_the_choices_above_do_compose():
    """Or the test before would compare errors with errors."""
    together = [f"{key}={values[0]}" for key, values in CHOICES.items() if key != "+schedule.epochs"]
    with _hydra(CONF):
        assert by_hydra(together).sparsity.label == "set_itop"
        assert outcome(lambda: by_hydra(["+schedule.epochs=9"])) == "an error"  # it is there already


def test_a_thousand_cells_compose_a_few_times(monkeypatch):
    calls = []
    original = hydra_compose
    monkeypatch.setattr(
        "dst.compose.hydra_compose", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    overrides = ["sparsity=set_itop,rigl", "sparsity.density=0.1,0.2", "schedule.lr.peak=0.1,0.2", "seed=range(0,125)"]
    cells = compose_command(CONF, overrides, multirun=True).cells
    assert len(cells) == 1000
    assert len(calls) <= 4  # two methods, and what they are changed from
    assert [config.seed for _, config in cells[:3]] == [0, 1, 2]
    assert len({repr(flatten(config)) for _, config in cells}) == 1000


def test_cells_share_nothing():
    with _hydra(CONF):
        composer = Composer(CONF)
        one, other = composer.config(["model.hidden=[8]"]), composer.config(["model.hidden=[8]"])
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
