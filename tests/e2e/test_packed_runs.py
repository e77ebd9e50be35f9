"""Whole runs with packed weights: what is refused before anything is on record, and what other runs start from."""

import os
import shutil

import pytest
import torch

from dst.records.catalog import find_runs
from dst.records.read import read_compute, read_layers, read_networks, read_run, read_status, read_summary
from dst.training.checkpoint import Checkpoints
from tests.processes import run, run_folder

SILENT = ("tracking=none", "tracking.progress=none", "hardware.threads=1")
SHORT = (
    *("model.hidden=[64,32]", "sparsity.distribution.name=uniform", "schedule.max_steps=12", "schedule.update_every=3"),
    *("checkpoint.every_steps=5", *SILENT),
)
PACKED = "sparsity.compute=packed"


@pytest.fixture
def here(tmp_path, folder, kernels):
    """A folder in which kernels are built already; a copy, which a test may spoil."""
    shutil.copytree(folder, tmp_path / "outputs" / ".kernels")
    (tmp_path / "outputs" / ".kernels").chmod(0o700)
    return tmp_path


def assert_refused(result, told, where):
    assert result.code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output
    assert find_runs(where / "outputs") == []
    assert not list(where.rglob("run.json"))


REFUSED = {
    "hardware.device=cuda": "sparsity.compute=packed: on hardware.device=cuda weights are multiplied by units of 16 "
    "adjacent inputs that groups of 32 rows or more share",
    "hardware.compile=true": "sparsity.compute=packed: torch.compile sees nothing of its kernels; set hardware.compile",
    "sparsity=edge_popup": "sparsity.compute=packed does not go with learned masks",
    "sparsity=str": "sparsity.compute=packed does not go with learned masks",
    "sparsity=dense": "sparsity.compute=packed would be ignored: no layer could be packed at any time, all are denser",
    "sparsity=static sparsity.distribution.name=uniform sparsity.density=0.5": "all are denser than 0.3",
    "sparsity=nm_rigl": "all are denser than 0.3",
    "model.hidden=[15,15]": "fc1, fc2, fc3 (fewer than 16 inputs or outputs); use sparsity.compute=masked",
    "sparsity.compute=auto": "sparsity.compute=auto goes by times, which differ from one time to the next, so that "
    "hardware.determinism=strict cannot hold; use sparsity.compute=packed, a fixed rule, or hardware.determinism=fast",
    "sparsity.compute=pack": "sparsity.compute=pack: did you mean 'packed'? allowed: ",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused(options, tmp_path):
    result = run(PACKED, *options.split(), *SILENT, cwd=tmp_path)
    assert_refused(result, REFUSED[options], tmp_path)


def test_no_compiler(tmp_path):
    result = run(PACKED, *SHORT, cwd=tmp_path, env={"CC": "/nonexistent"})
    assert_refused(result, "sparsity.compute=packed: there is no C compiler (/nonexistent) on this machine", tmp_path)
    assert "use sparsity.compute=masked" in result.output


def test_a_compiler_that_fails(tmp_path):
    (tmp_path / "cc").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo own 1.0 && exit\necho no OpenMP here >&2\nexit 1'
    )
    (tmp_path / "cc").chmod(0o755)
    result = run(PACKED, *SHORT, cwd=tmp_path, env={"CC": str(tmp_path / "cc")})
    assert_refused(result, "fails: no OpenMP here; use sparsity.compute=masked", tmp_path)
    assert list((tmp_path / "outputs" / ".kernels").iterdir()) == []


@pytest.mark.parametrize("what", ["the library", "the folder"])
@pytest.mark.parametrize("how", ["others may write it", "it is somebody else's"])
def test_code_that_is_not_ours_alone(what, how, here):
    if how == "it is somebody else's" and os.getuid() != 0:
        pytest.xfail("only root can give a file away")
    folder = here / "outputs" / ".kernels"
    (library,) = folder.glob(f"*{torch.backends.cpu.get_cpu_capability().lower()}*.so")
    spoilt = library if what == "the library" else folder
    if how == "others may write it":
        spoilt.chmod(0o722)
    else:
        os.chown(spoilt, 12345, -1)
    result = run(PACKED, *SHORT, cwd=here)
    assert_refused(result, f"{os.path.relpath(spoilt, here)} belongs to somebody else, or others may write it", here)


def test_a_torn_library_is_built_anew(here):
    libraries = list((here / "outputs" / ".kernels").glob("*.so"))
    for library in libraries:
        library.write_bytes(library.read_bytes()[:1000])
    result = run(PACKED, *SHORT, cwd=here)
    assert result.code == 0, result.output
    assert max(library.stat().st_size for library in libraries) > 1000


def test_where_no_code_may_be_written(tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / ".kernels").write_text("in the way")
    result = run(PACKED, *SHORT, cwd=tmp_path)
    assert_refused(result, "kernels cannot be built in ", tmp_path)


def test_records_are_those_of_masks(here):
    """Of all but times and what was computed: positions, densities, FLOPs, Rs, shapes of what is saved."""
    found = {}
    for compute in ("masked", "packed"):
        result = run(f"sparsity.compute={compute}", f"output.root={here / 'outputs'}", *SHORT, cwd=here)
        assert result.code == 0, result.output
    for folder in find_runs(here / "outputs"):
        about = read_run(folder)
        found[about["config"]["sparsity.compute"]] = folder
    assert len(found) == 2
    masked, packed = found["masked"], found["packed"]
    assert read_layers(packed) == read_layers(masked)
    one, other = read_summary(packed), read_summary(masked)
    for name in one.keys() | other.keys():
        if not any(word in name for word in ("time/", "seconds", "attempt", "loss")):
            assert one[name] == other[name], name
    states = [Checkpoints(folder / "checkpoints").load_newest() for folder in (packed, masked)]
    assert states[0].keys() == states[1].keys()
    for part in ("model", "optimizer"):
        assert shapes(states[0][part]) == shapes(states[1][part])
    assert "sparsity.compute" in read_run(packed)["identity"]
    assert "sparsity.compute" not in read_run(masked)["identity"]


def shapes(state):
    if isinstance(state, dict):
        return {key: shapes(value) for key, value in state.items()}
    return tuple(state.shape) if isinstance(state, torch.Tensor) else None


@pytest.mark.slow
def test_other_runs_start_from_packed_ones_and_the_other_way(here):
    """From their weights, and from their masks; the masks of a run of masks are those of one that is packed."""
    root = f"output.root={here / 'outputs'}"
    first = {}
    for compute in ("masked", "packed"):
        group = f"output.group={compute}"
        result = run("sparsity=set", f"sparsity.compute={compute}", root, group, *SHORT, cwd=here)
        assert result.code == 0, result.output
        first[compute] = run_folder(here / "outputs" / compute)
    for compute, source in (("masked", first["packed"]), ("packed", first["masked"])):
        options = ("sparsity=static", f"sparsity.compute={compute}", root, *SHORT)
        masks = ("sparsity.distribution.name=none", "sparsity.density=null", "sparsity.init.name=file")
        result = run(
            *(*options, f"output.group=from_{compute}", *masks, f"sparsity.init.path={source}"),
            *(f"model.weights={source}",),
            cwd=here,
        )
        assert result.code == 0, result.output
        started = run_folder(here / "outputs" / f"from_{compute}")
        final = Checkpoints(source / "checkpoints").load_newest()["sparsifier"]["masks"]
        now = Checkpoints(started / "checkpoints").load_newest()["sparsifier"]["masks"]
        assert all(torch.equal(final[name], now[name]) for name in final)
    both = [Checkpoints(folder / "checkpoints").load_newest()["sparsifier"]["masks"] for folder in first.values()]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


@pytest.mark.slow
def test_networks_that_are_kept_are_dense(here):
    options = ("procedure=imp", "procedure.density=0.1", "procedure.keep=0.5", "procedure.rewind=init")
    few = ("schedule.epochs=1", "schedule.max_steps=null", "sparsity.density=0.25", "output.keep_networks=true")
    result = run("sparsity=static", PACKED, *SHORT, *options, *few, cwd=here)
    assert result.code == 0, result.output
    folder = run_folder(here / "outputs")
    named = {row["name"]: row["active"] for row in read_networks(folder)}
    assert len(named) == 2
    for name, active in named.items():
        found = torch.load(folder / "networks" / f"{name}.pt", weights_only=True)
        masks = found["sparsifier"]["masks"]
        assert sum(int(mask.sum()) for mask in masks.values()) == active
        for layer, mask in masks.items():
            assert found["model"][f"{layer}.weight"].shape == mask.shape
            assert not found["model"][f"{layer}.weight"][~mask].any()


def test_what_stays_masked_is_said_at_the_start(here):
    result = run(PACKED, *SHORT, cwd=here)
    assert result.code == 0, result.output
    assert read_status(run_folder(here / "outputs"))["state"] == "done"
    assert "fc3 (fewer than 16 inputs or outputs)" in result.output


def test_times_of_layers_are_printed_recorded_and_obeyed_by_a_resume(here):
    command = ("sparsity.compute=auto", "hardware.determinism=fast", *SHORT)
    stopped = run(*command, cwd=here, fault="signal:SIGTERM:7")
    assert stopped.code == 75, stopped.output
    assert "compute, timed after step 1 (forward and backward pass):" in stopped.output
    folder = run_folder(here / "outputs")
    rows = read_compute(folder)
    assert [(row["step"], row["layer"]) for row in rows] == [(1, "fc1"), (1, "fc2")]
    assert all(row["choice"] == ("packed" if row["packed_ms"] < row["masked_ms"] else "masked") for row in rows)
    resumed = run(*command, cwd=here)
    assert resumed.code == 0, resumed.output
    assert "timed after" not in resumed.output
    chosen = sum(row["choice"] == "packed" for row in rows)
    assert f"  {chosen} of 3 layers are packed" in resumed.output
    assert read_compute(folder) == rows
