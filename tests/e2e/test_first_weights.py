"""Runs start from the weights that ``model.init`` draws; runs of the key before it are found, shown and continued."""

import json

import pytest
import torch

from analysis.results import accuracy_figures
from dst import registry
from dst.files import sha256
from dst.models.initialise import initialise
from dst.records.catalog import catalog
from dst.records.read import read_run, read_status
from dst.run import build
from dst.training.determinism import seed_torch
from tests.composed import compose_cells
from tests.processes import REPOSITORY, run, run_folder

SILENT = ("tracking=none", "tracking.progress=none", "hardware.threads=1")
DIGITS = ("model.hidden=[20,12]", "sparsity=static", "sparsity.density=0.25", *SILENT)

SHORT = ("schedule.max_steps=6", "checkpoint.every_steps=1", *SILENT)


def first_weights(*overrides):
    """Return the weights of a run's network before masks are applied."""
    ((_, config),) = compose_cells(REPOSITORY / "conf", (*DIGITS, *overrides), multirun=False)
    return build._initialised(config, build.load_dataset(config)).state_dict()


def test_weights_are_drawn_by_the_runs_seed_after_those_of_the_builder():
    """So ``fan_in`` has the bits that the former key had, and a run of the default those it ever had."""
    mine = first_weights(
        "model.init=looks_linear", "model.bias_scale=0", "model.init_density=${sparsity.density}", "seed=3"
    )
    seed_torch(3, "init")
    model = registry.find("model", "mlp").load()((1, 8, 8), 10, hidden=[20, 12])
    assert dict.fromkeys(mine, True) == {
        key: torch.equal(value, model.state_dict()[key]) for key, value in first_weights("seed=3").items()
    }
    initialise(model, registry.find("model_init", "looks_linear").load(), bias_scale=0.0, init_density=0.25)
    assert all(torch.equal(mine[key], value) for key, value in model.state_dict().items())
    other = first_weights("model.init=looks_linear", "model.bias_scale=0", "model.init_density=0.25", "seed=4")
    assert not torch.equal(mine["fc1.weight"], other["fc1.weight"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("model.init=fan_in",),
            "model.init=fan_in would be ignored: this model has no convolutions. Use model.init=kaim",
        ),
        (
            ("model=resnet18", "model.bias_scale=0"),
            "model.bias_scale=0 would be ignored: this model's convolutions and l",
        ),
        (("model.init_density=1.5",), "model.init_density=1.5: must be in (0, 1]"),
    ],
)
def test_what_would_be_ignored_is_refused_before_anything_is_written(options, told, tmp_path):
    result = run(*options, *SILENT, cwd=tmp_path)
    assert result.code == 2
    assert told in result.output
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.slow
def test_a_run_of_the_key_that_was_replaced_is_shown_and_goes_on(tmp_path):
    """Its record is made as that of the code before: a frozen config with the former key and none of the new ones."""
    command = ("model=resnet20", "sparsity=static", "model.init=fan_in", *SHORT)
    assert run(*command, cwd=tmp_path, fault="kill:step:4").code == -9
    folder = run_folder(tmp_path / "outputs")
    about, text = read_run(folder), (folder / "config.yaml").read_text()
    assert about["identity"]["model.fan_in"] is True
    text = text.replace("  init: fan_in\n  bias_scale: null\n  init_density: null\n", "  fan_in: true\n", 1)
    assert "model:\n  name: resnet20\n  fan_in: true\n" in text
    new = {key: about["config"].pop(key) for key in ("model.init", "model.bias_scale", "model.init_density")}
    assert new == {"model.init": "fan_in", "model.bias_scale": None, "model.init_density": None}
    about["config"]["model.fan_in"] = True
    (folder / "config.yaml").write_text(text)
    (folder / "run.json").write_text(json.dumps(about | {"config_digest": sha256(text)}))

    refused = run("model=resnet20", "model.fan_in=true", *SHORT, cwd=tmp_path)
    assert refused.code == 2
    assert "there is no key 'model.fan_in' any more: model.init=fan_in is what model.fan_in=true was" in refused.output
    result = run(*command, cwd=tmp_path)
    assert result.code == 0, result.output
    assert "continuing from step 3" in result.output
    assert run_folder(tmp_path / "outputs") == folder
    assert (read_status(folder)["state"], read_status(folder)["attempt"]) == ("done", 2)
    assert "  init: fan_in\n" in (folder / "config.yaml").read_text()

    # One that was done before, with another seed, is a row with it.
    assert run(*command, "seed=1", cwd=tmp_path).code == 0
    (former,) = [path.parent for path in (tmp_path / "outputs").rglob("run.json") if path.parent != folder]
    about = read_run(former)
    about["config"] = {key: value for key, value in about["config"].items() if key not in new} | {"model.fan_in": True}
    (former / "run.json").write_text(json.dumps(about))
    figures = accuracy_figures(catalog(tmp_path / "outputs"))
    assert figures["n"].tolist() == [2]
