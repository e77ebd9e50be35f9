"""Layer ratios from the command line: each by one override, those of a finished run, and the densities on record."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from dst import registry
from dst.files import file_sha256
from dst.records.catalog import find_runs
from dst.records.read import read_json, read_layers, read_status, read_summary
from dst.sparsity.allocation import allocate
from dst.training.checkpoint import Checkpoints
from tests.e2e.test_identity import carry_out, frozen
from tests.processes import run, run_folder, traces

SILENT = ("tracking=none", "tracking.progress=none", "hardware.threads=1")
TINY = ("model.hidden=[32,16]", "schedule.epochs=1", "schedule.update_every=5", *SILENT)
SHAPES = {"fc1": (32, 64), "fc2": (16, 32), "fc3": (10, 16)}
SIZE = 64 * 32 + 32 * 16 + 16 * 10
FROM_RUN = ("sparsity=rigl_itop", "sparsity.distribution.name=from_run", *TINY, "checkpoint.every_steps=5")


def masks_of(folder):
    return Checkpoints(folder / "checkpoints").load_newest()["sparsifier"]["masks"]


def counts_of(folder):
    return {name: int(mask.sum()) for name, mask in masks_of(folder).items()}


def first_counts(folder):
    return {row["layer"]: row["active"] for row in read_layers(folder) if row["step"] == 0}


@pytest.fixture(scope="module")
def gmp(tmp_path_factory):
    """The folder of a finished run that has found its own layer densities."""
    folder = tmp_path_factory.mktemp("gmp")
    result = run("sparsity=gmp", *TINY, cwd=folder)
    assert result.code == 0, result.output
    return run_folder(folder / "outputs")


# -- ratios ------------------------------------------------------------------------------------------------------------


def test_every_ratio_is_one_override(tmp_path):
    names = ("uniform", "uniform_plus", "er", "erk", "balanced", "pyramidal")
    command = ("sparsity=static", "sparsity.density=0.9", *TINY)  # uniform_plus keeps the first layer, the largest
    result = run("-m", *command, f"sparsity.distribution.name={','.join(names)}", cwd=tmp_path)
    assert result.code == 0, result.output
    found = {
        read_json(folder / "run.json")["config"]["sparsity.distribution.name"]: folder for folder in runs(tmp_path)
    }
    assert found.keys() == set(names)
    for name, folder in found.items():
        wanted = allocate(registry.find("distribution", name).load(), list(SHAPES.values()), 0.9)
        assert list(counts_of(folder).values()) == wanted == list(first_counts(folder).values())
        assert sum(wanted) == round(0.9 * SIZE)


def runs(folder):
    return find_runs(folder / "outputs")


# -- nominal and realised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "is_exact"),
    [
        (("sparsity=static", "sparsity.distribution.name=pyramidal"), True),
        (("sparsity=rigl_itop", "sparsity.distribution.name=balanced", "sparsity.init.name=bernoulli"), False),
        (("sparsity=static", "sparsity.distribution.name=balanced", "sparsity.distribution.clip=true"), False),
    ],
)
def test_nominal_first_and_final_density_are_on_record(options, is_exact, tmp_path):
    assert run(*options, "sparsity.density=0.3", *TINY, cwd=tmp_path).code == 0
    folder = run_folder(tmp_path / "outputs")
    summary = read_summary(folder)
    final, first = counts_of(folder), first_counts(folder)
    assert summary["sparsity/nominal_density"] == 0.3
    assert summary["sparsity/initial_density"] == sum(first.values()) / SIZE
    assert summary["sparsity/density"] == sum(final.values()) / SIZE
    assert (sum(final.values()) == round(0.3 * SIZE)) is is_exact


def test_a_ramp_begins_at_another_density_and_dense_training_asks_for_none(gmp, tmp_path):
    summary = read_summary(gmp)
    assert (summary["sparsity/nominal_density"], summary["sparsity/initial_density"]) == (0.1, 1.0)
    assert summary["sparsity/density"] == round(0.1 * SIZE) / SIZE
    assert run("sparsity=dense", *TINY, cwd=tmp_path).code == 0
    summary = read_summary(run_folder(tmp_path / "outputs"))
    assert "sparsity/nominal_density" not in summary
    assert summary["sparsity/initial_density"] == summary["sparsity/density"] == 1


# -- the layer densities of a finished run -----------------------------------------------------------------------------


def test_a_run_of_the_same_density_has_the_counts_of_its_source(gmp, tmp_path):
    assert run(*FROM_RUN, f"sparsity.distribution.path={gmp}", cwd=tmp_path).code == 0
    folder = run_folder(tmp_path / "outputs")
    assert first_counts(folder) == counts_of(folder) == counts_of(gmp)
    assert not any(torch.equal(mine, masks_of(gmp)[name]) for name, mine in masks_of(folder).items())
    about = read_json(folder / "run.json")
    digest = file_sha256(Checkpoints(gmp / "checkpoints").newest())
    assert about["sources"] == {"sparsity.distribution.path": digest}
    assert about["identity"]["sparsity.distribution.digest"] == digest
    assert "sparsity.distribution.path" not in about["identity"]


def test_another_density_scales_them_and_shares_out_what_overflows(gmp, tmp_path):
    assert run(*FROM_RUN, f"sparsity.distribution.path={gmp}", "sparsity.density=0.25", cwd=tmp_path).code == 0
    theirs, mine = counts_of(gmp), first_counts(run_folder(tmp_path / "outputs"))
    assert sum(mine.values()) == 680
    assert mine["fc3"] == 160 < 2.5 * theirs["fc3"]  # 2.5 times as many do not fit
    share = (680 - 160) / (theirs["fc1"] + theirs["fc2"])
    assert [mine[name] for name in ("fc1", "fc2")] == pytest.approx([share * theirs[n] for n in ("fc1", "fc2")], abs=1)


def test_a_killed_run_goes_on_bit_identically_without_its_source(gmp, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    shutil.copytree(gmp, source := tmp_path / "source")
    digest = file_sha256(Checkpoints(source / "checkpoints").newest())
    given = (f"sparsity.distribution.path={source}", f"sparsity.distribution.digest={digest}", "sparsity.density=0.3")
    assert run(*FROM_RUN, *given, cwd=tmp_path / "whole").code == 0
    assert run(*FROM_RUN, *given, cwd=tmp_path / "killed", fault="kill:step:12").code == -9
    shutil.rmtree(source)
    resumed = run(*FROM_RUN, *given, cwd=tmp_path / "killed")
    assert resumed.code == 0, resumed.output
    assert "continuing from step 10" in resumed.output
    whole, killed = (run_folder(tmp_path / name / "outputs") for name in ("whole", "killed"))
    assert traces(killed) == traces(whole)
    assert read_summary(killed)["sparsity/initial_density"] == read_summary(whole)["sparsity/initial_density"]
    assert read_json(killed / "run.json")["sources"] == {"sparsity.distribution.path": digest}
    anew = run(*FROM_RUN, *given, "output.resume=never", cwd=tmp_path / "killed")
    assert anew.code == 2
    assert f"sparsity.distribution.path={source}: there is no checkpoint" in anew.output


def test_a_queued_run_takes_the_ratios_that_it_was_submitted_with(gmp, tmp_path):
    shutil.copytree(gmp, source := tmp_path / "source")
    queued = frozen(tmp_path, *FROM_RUN, f"sparsity.distribution.path={source}", "hardware=cpu")
    ended = carry_out(queued)
    assert ended.returncode == 0, ended.stderr
    assert first_counts(Path(queued.folder)) == counts_of(gmp)
    about = read_json(Path(queued.folder) / "run.json")
    assert about["sources"]["sparsity.distribution.path"] == about["identity"]["sparsity.distribution.digest"]


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_a_run_of_another_model_or_scope_is_refused(gmp, tmp_path):
    command = (*FROM_RUN, f"sparsity.distribution.path={gmp}")
    for other, layers in (("model.hidden=[32,8]", "fc2, fc3"), ("sparsity.scope.exclude=[fc1]", "fc1")):
        result = run(*command, other, cwd=tmp_path)
        assert result.code == 2
        told = f"configuration error: sparsity.distribution.path={gmp}: its masks are of another model or scope: "
        assert told in result.output
        told = result.output.strip().rpartition("scope: ")[2].split(", ")
        assert [layer.split(" is ")[0] for layer in told] == layers.split(", ")


def test_a_run_that_is_not_done_is_refused_however_it_is_named(tmp_path):
    assert run("sparsity=gmp", *TINY, "checkpoint.every_steps=5", cwd=tmp_path, fault="signal:SIGTERM:12").code == 75
    source = run_folder(tmp_path / "outputs")
    digest = file_sha256(Checkpoints(source / "checkpoints").newest())
    given = (*FROM_RUN, f"sparsity.distribution.path={source}", "output.group=new")
    for more in ((), (f"sparsity.distribution.digest={digest}",)):
        result = run(*given, *more, cwd=tmp_path)
        assert result.code == 2
        told = f"sparsity.distribution.path={source}: this run is not done, its state is preempted"
        assert told in result.output
    (source / "status.json").unlink()
    assert "not done, its state is unknown" in run(*given, cwd=tmp_path).output
    assert not (tmp_path / "outputs" / "new").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sparsity.distribution.name=from_run", "sparsity.distribution.path is missing: distribution 'from_run' needs"),
        (
            "sparsity.distribution.name=from_run sparsity.distribution.path=nowhere",
            "sparsity.distribution.path=nowhere: there is no checkpoint; give a run's folder",
        ),
        (
            "sparsity.distribution.name=balanced sparsity.distribution.path=nowhere",
            "sparsity.distribution.path=nowhere would be ignored: distribution 'balanced' takes classifier, clip",
        ),
        (
            "sparsity.distribution.name=pyramidal sparsity.distribution.clip=true",
            "sparsity.distribution.clip=true would be ignored: distribution 'pyramidal' takes classifier",
        ),
        ("sparsity.distribution.name=pyramid", "unknown distribution 'pyramid': did you mean 'pyramidal'?"),
        ("sparsity.distribution.name=balanced sparsity.density=0", "sparsity.density=0.0: must be in (0, 1)"),
        ("sparsity.distribution.name=pyramidal sparsity.density=1.5", "sparsity.density=1.5: must be in (0, 1)"),
        ("sparsity.distribution.name=balanced sparsity.density=-0.1", "sparsity.density=-0.1: must be in (0, 1)"),
        (
            "sparsity.distribution.name=balanced sparsity.density=0.0005",
            "sparsity.density=0.0005: 1 active weights cannot be shared among 3 layers of 2720 weights in all",
        ),
    ],
)
def test_wrong_ratios_are_refused(override, told, tmp_path):
    result = run("sparsity=static", *TINY, *override.split(), cwd=tmp_path)
    assert result.code == 2
    assert told in result.output
    assert "Traceback" not in result.output
    assert not runs(tmp_path)


def test_the_least_density_that_is_named_trains(tmp_path):
    command = ("sparsity=static", "sparsity.distribution.name=pyramidal", *TINY)
    refused = run(*command, "sparsity.density=0.0005", cwd=tmp_path)
    (least,) = re.findall(r"The density is too small: the least is ([\d.]+)$", refused.output.strip())
    assert least == "0.00111"  # 3 / 2720 is 0.0011029
    assert run(*command, f"sparsity.density={least}", cwd=tmp_path).code == 0
    assert counts_of(run_folder(tmp_path / "outputs")) == dict.fromkeys(SHAPES, 1)
    assert read_status(run_folder(tmp_path / "outputs"))["state"] == "done"
