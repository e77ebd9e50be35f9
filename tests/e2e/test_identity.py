"""What a run reads from outside its config, data and other runs' checkpoints, says which run it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dst.config.compose import ComposedCell
from dst.config.identity import run_id
from dst.config.schema import ConfigError, complete, with_value
from dst.data import content
from dst.data.dataset import DataError
from dst.files import file_sha256
from dst.launcher import sweep
from dst.launcher.frozen import freeze
from dst.records.catalog import find_runs
from dst.records.read import read_json, read_status, read_summary
from dst.run import build, feasible
from dst.run.cell import cells
from dst.run.sources import CHECKPOINTS, checkpoint, identified, main, sources
from dst.training.checkpoint import Checkpoints
from tests.composed import compose_cells
from tests.data.pictures import picture, write, write_folder
from tests.data.test_sources import write_raw
from tests.processes import REPOSITORY, run, run_folder, run_together

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")

SILENT = ("tracking=none", "tracking.progress=none", "hardware.threads=1")
TINY = ("model.hidden=[8]", "schedule.epochs=1", "schedule.batch_size=8", "sparsity=static", "data.val_fraction=0.2")
PICTURES = ("data=image_folder", *TINY, *SILENT)
DIGITS = ("model.hidden=[16]", "schedule.epochs=1", "sparsity=static", *SILENT)


def folders(root: Path) -> tuple[Path, Path]:
    """Write two sets of the same names: in the second one, the two classes have changed places."""
    one = write_folder(root / "a", {"train": 10, "test": 4})
    other = root / "b"
    for part in ("train", "test"):
        for label in (0, 1):
            shutil.copytree(one / part / f"class_{label}", other / part / f"class_{1 - label}")
    return one, other


def composed(*overrides: str, multirun: bool = False):
    return compose_cells(REPOSITORY / "conf", overrides, multirun=multirun)


# -- data --------------------------------------------------------------------------------------------------------------


def test_two_folders_in_one_output_root_are_two_runs(tmp_path):
    one, other = folders(tmp_path)
    first = run(*PICTURES, f"data.root={one}", cwd=tmp_path)
    second = run(*PICTURES, f"data.root={other}", cwd=tmp_path)
    assert (first.code, second.code) == (0, 0), second.output
    assert "already" not in second.output
    records = [read_json(folder / "run.json") for folder in find_runs(tmp_path / "outputs")]
    assert len({record["identity"]["data.digest"] for record in records}) == 2
    assert {record["config"]["data.root"] for record in records} == {str(one), str(other)}
    swept = run("-m", *PICTURES, f"data.root={one},{other}", cwd=tmp_path)
    assert "2 runs: 2 finished already, 0 to train" in swept.output
    assert all(f"image_folder({folder.name}) mlp" in swept.output for folder in (one, other))  # told apart
    again = run(*PICTURES, f"data.root={one}", cwd=tmp_path)
    assert "already, nothing was trained" in again.output


def test_a_sweep_over_two_folders_trains_two_cells(tmp_path):
    one, other = folders(tmp_path)
    shutil.copytree(one, tmp_path / "copied")
    swept = run("-m", *PICTURES, f"data.root={one},{other},{tmp_path / 'copied'}", cwd=tmp_path)
    assert swept.code == 0, swept.output
    assert "3 cells are 2 distinct runs" in swept.output
    assert len(find_runs(tmp_path / "outputs")) == 2


def test_a_changed_folder_is_another_run_and_the_former_one_is_found_by_its_digest(tmp_path):
    one, _ = folders(tmp_path)
    assert run(*PICTURES, f"data.root={one}", cwd=tmp_path).code == 0
    first = run_folder(tmp_path / "outputs")
    digest = read_json(first / "run.json")["config"]["data.digest"]
    write(one / "train" / "class_0" / "11.jpg", picture(77))
    second = run(*PICTURES, f"data.root={one}", cwd=tmp_path)
    assert second.code == 0
    assert "already" not in second.output
    assert len(find_runs(tmp_path / "outputs")) == 2
    found = run(
        *PICTURES, "data.root=nowhere", f"data.digest={digest}", cwd=tmp_path
    )  # done, so that no data is needed
    assert f"run {first.name} is done already" in found.output
    new = run(*PICTURES, f"data.root={one}", f"data.digest={digest}", "seed=1", cwd=tmp_path)
    assert new.code == 0, new.output  # the decoded set of the former content is still in the cache
    shutil.rmtree(tmp_path / "outputs" / ".cache")
    new = run(*PICTURES, f"data.root={one}", f"data.digest={digest}", "seed=2", cwd=tmp_path)
    assert new.code == 2
    assert len(set(re.findall("[0-9a-f]{64}", new.output))) == 2
    assert f"data.digest={digest}" in new.output


def test_a_digest_is_looked_up_once_for_all_cells(tmp_path, monkeypatch):
    one, other = folders(tmp_path)
    reads = []
    read = content._read
    monkeypatch.setattr(content, "_read", lambda *args: reads.append(args) or read(*args))
    cache = f"data.cache={tmp_path / 'cache'}"
    seeds = ",".join(map(str, range(30)))
    cells = composed(*PICTURES, cache, f"data.root={one},{other}", f"seed={seeds}", multirun=True)
    configs = sweep._identified([ComposedCell(*cell, {}) for cell in cells])
    assert len({run_id(config) for config in configs}) == 60
    assert len({config.data.digest for config in configs}) == 2
    assert len(reads) == 2


def test_data_that_is_not_there_is_asked_for_and_a_digest_stands_for_it_elsewhere(tmp_path, capsys):
    options = (*PICTURES, f"data.root={tmp_path / 'nowhere'}", f"data.cache={tmp_path / 'cache'}")
    ((_, config),) = composed(*options)
    meant = r"there is no such folder.*say by data\.digest=DIGEST.*dst\.run\.sources"
    with pytest.raises(ConfigError, match=meant) as told:
        sweep._identified([ComposedCell([], config, {})])
    assert len(told.value.problems) == 1
    ((_, config),) = composed(*options, f"data.digest={'0' * 64}")
    config = identified(complete(config), {})
    with pytest.raises(ConfigError, match="there is no such folder"):
        feasible.check(config)
    feasible.check(config, elsewhere=True)
    assert (
        "there is no image_folder here; whether the runs fit it is checked when they begin" in capsys.readouterr().err
    )
    write_folder(tmp_path / "nowhere", {"train": 10, "test": 4})
    with pytest.raises(ConfigError, match="not the content that was asked for"):
        feasible.check(config, elsewhere=True)


def test_a_published_set_needs_not_be_where_its_runs_are_submitted(tmp_path, capsys):
    """Its name says which content is meant."""
    options = ("data=mnist", "model=lenet_300_100", f"data.root={tmp_path}", "data.download=false")
    ((_, config),) = composed(*options, f"data.cache={tmp_path / 'cache'}")
    config = identified(complete(config), {})
    with pytest.raises(ConfigError, match="MNIST"):
        feasible.check(config)
    feasible.check(config, elsewhere=True)
    assert "there is no mnist here; whether the runs fit it is checked when they begin" in capsys.readouterr().err


def test_the_digest_of_a_published_set_is_told_of_what_lies_there_only(tmp_path, capsys):
    assert main(["mnist", str(tmp_path)]) == 2
    assert capsys.readouterr().out == ""


def test_data_that_could_not_be_read_is_looked_at_again(tmp_path, monkeypatch):
    """A disk may have failed for a moment; what is wrong with the data itself is remembered."""
    one, _ = folders(tmp_path)
    ((_, config),) = composed(*PICTURES, f"data.cache={tmp_path / 'cache'}", f"data.root={one}")
    calls = []

    def failing(cause, text):
        def load(*_, **__):
            calls.append(text)
            raise DataError(text) from cause

        return load

    for cause, text, looks in ((OSError(5, "Input/output error"), "cannot read", 2), (None, "damaged", 1)):
        calls.clear()
        monkeypatch.setattr(build, "load", failing(cause, text))
        for _ in range(2):
            with pytest.raises(DataError, match=text):
                build.load_dataset(complete(config))
        assert len(calls) == looks


def test_a_missing_folder_is_told_once_for_all_its_cells(tmp_path):
    result = run("-m", *PICTURES, "data.root=nowhere", "seed=0,1,2", cwd=tmp_path)
    assert result.code == 2
    assert result.output.count("there is no such folder") == 1
    one, _ = folders(tmp_path)
    result = run("-m", *PICTURES, f"data.root={one},nowhere", cwd=tmp_path)
    assert (result.code, result.output.count("(in 1 of 2 cells: data.root=nowhere)")) == (2, 1)


def frozen(root: Path, *options: str):
    """Freeze a run as the launcher does, and return it."""
    ((_, config),) = composed(*options, f"output.root={root / 'outputs'}", f"data.cache={root / 'cache'}")
    (cell,) = cells([identified(complete(config), {})])
    return freeze(cell, "")


def carry_out(frozen_run) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dst.launcher.node", frozen_run.folder, "--digest", frozen_run.digest]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "WORLD_SIZE": "1"})


def test_data_that_changes_while_a_run_is_queued_fails_it(tmp_path):
    one, _ = folders(tmp_path)
    queued = frozen(tmp_path, *PICTURES, f"data.root={one}")
    digest = read_json(Path(queued.folder) / "run.json")["identity"]["data.digest"]
    (one / "test" / "class_0" / "0.jpg").unlink()
    ended = carry_out(queued)
    assert ended.returncode == 2
    status = read_status(Path(queued.folder))
    assert status["state"] == "failed"
    assert len(set(re.findall("[0-9a-f]{64}", status["error"]))) == 2
    assert f"but data.digest={digest}" in status["error"]
    write(one / "test" / "class_0" / "0.jpg", picture(10 * 2))  # the very one that write_folder has made
    again = carry_out(queued)
    assert again.returncode == 0, again.stderr
    assert read_status(Path(queued.folder))["state"] == "done"


def test_several_processes_read_what_the_main_one_identified(tmp_path):
    one, _ = folders(tmp_path)
    options = (*PICTURES, f"data.root={one}", "hardware=ddp", "hardware.device=cpu", "hardware.determinism=strict")
    results = run_together(*options, cwd=tmp_path)
    assert [result.code for result in results] == [0, 0], results[0].output + results[1].output
    assert re.fullmatch(
        "[0-9a-f]{64}", read_json(run_folder(tmp_path / "outputs") / "run.json")["identity"]["data.digest"]
    )


def test_a_known_set_of_another_content_is_refused_and_a_run_of_its_own_on_purpose(tmp_path):
    write_raw(tmp_path)
    options = ("data=mnist", *TINY, *SILENT, f"data.root={tmp_path}", "data.download=false")
    refused = run(*options, cwd=tmp_path)
    assert refused.code == 2
    assert f"{tmp_path}/MNIST/raw: damaged, or not the original: train-images-idx3-ubyte (MD5 sum" in refused.output
    assert "published 6bbc9ace898e44ae57da46a324031adb" in refused.output
    assert not find_runs(tmp_path)
    (digest,) = re.findall(r"data\.digest=([0-9a-f]{64})", refused.output)
    ((_, plain),), ((_, config),) = composed(*options), composed(*options, f"data.digest={digest}")
    config = identified(complete(config), {})
    dataset = build.load_dataset(config)
    assert (len(dataset.train), dataset.shape) == (12, (1, 2, 3))
    with pytest.raises(DataError, match="not the original: train-images"):
        build.load_dataset(plain)
    assert run_id(complete(plain)) != run_id(config)


# -- checkpoints of other runs -----------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """Return the folder of a run that another one can start from."""
    (tmp_path / "source").mkdir()
    assert run(*DIGITS, cwd=tmp_path / "source").code == 0
    return run_folder(tmp_path / "source" / "outputs")


def train_on(source: Path, keep: int = 2) -> None:
    """Save another checkpoint in a run folder, as training on would: all its weights are larger by one."""
    checkpoints = Checkpoints(source / "checkpoints", keep)
    state = checkpoints.load_newest()
    assert state is not None
    state["model"] = {name: weight + 1 for name, weight in state["model"].items()}
    step = int(checkpoints.newest().stem.removeprefix("step_")) + 1
    checkpoints.save(step, state)


def newest(source: Path) -> tuple[str, torch.Tensor]:
    checkpoints = Checkpoints(source / "checkpoints")
    return file_sha256(checkpoints.newest()), checkpoints.load_newest()["model"]["fc1.weight"]


def started_from(source: Path, *options: str):
    ((_, config),) = composed(*DIGITS, "sparsity=dense", f"model.weights={source}", *options)
    return identified(complete(config), {})


def test_a_source_that_has_trained_on_is_another_run(source, tmp_path):
    command = (*DIGITS, "sparsity=dense", f"model.weights={source}")
    first_digest, _ = newest(source)
    assert run(*command, cwd=tmp_path).code == 0
    assert "already" in run(*command, cwd=tmp_path).output
    train_on(source)
    second = run(*command, cwd=tmp_path)
    assert second.code == 0
    assert "already" not in second.output
    records = [read_json(folder / "run.json") for folder in find_runs(tmp_path / "outputs")]
    second_digest, _ = newest(source)
    assert {record["identity"]["model.weights_digest"] for record in records} == {first_digest, second_digest}
    assert all(record["sources"]["model.weights"] == record["identity"]["model.weights_digest"] for record in records)
    assert len({read_summary(folder)["val/loss"] for folder in find_runs(tmp_path / "outputs")}) == 2
    assert "already" in run(*command, f"model.weights_digest={first_digest}", cwd=tmp_path).output


def test_what_is_loaded_is_what_the_id_says_although_the_source_trains_on(source, tmp_path, monkeypatch):
    """The source saves once more between any two looks at it."""
    digest, weight = newest(source)
    config = started_from(source)
    assert config.model.weights_digest == digest
    train_on(source)
    read = Path.read_bytes

    def train_on_and_read(path: Path) -> bytes:
        if path.suffix == ".pt":
            with monkeypatch.context() as undone:
                undone.setattr(Path, "read_bytes", read)
                train_on(source, keep=9)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", train_on_and_read)
    parts = build.build(config)
    assert torch.equal(parts.training.model.state_dict()["fc1.weight"], weight)
    assert sources(config) == {"model.weights": digest}


def test_a_run_that_goes_on_needs_its_source_no_more(source, tmp_path):
    """All that it took is in its own checkpoint; the source has been trained on, or is gone."""
    digest, _ = newest(source)
    given = (f"model.weights={source}", f"model.weights_digest={digest}")
    options = ("sparsity=static", *given, "checkpoint.every_steps=5")
    (tmp_path / "here").mkdir()
    killed = run(*DIGITS, *options, cwd=tmp_path / "here", fault="kill:step:12")
    assert killed.code == -9
    shutil.rmtree(source)
    finished = run(*DIGITS, *options, cwd=tmp_path / "here")
    assert finished.code == 0, finished.output
    assert "continuing from step 10" in finished.output
    record = read_json(run_folder(tmp_path / "here" / "outputs") / "run.json")
    assert record["sources"] == {"model.weights": digest}
    anew = run(*DIGITS, *options, "output.resume=never", cwd=tmp_path / "here")
    assert anew.code == 2
    assert "there is no checkpoint" in anew.output


@pytest.mark.parametrize("key", CHECKPOINTS)
def test_a_checkpoint_that_is_gone_or_changed_fails_the_run_and_both_digests_are_named(source, key, monkeypatch):
    options = {
        "model.weights": "sparsity=dense",
        "sparsity.init.path": "sparsity=static sparsity.density=null sparsity.distribution.name=none "
        "sparsity.init.name=file",
        "sparsity.distribution.path": "sparsity=static sparsity.distribution.name=from_run",
    }
    ((_, config),) = composed(*DIGITS, *options[key].split(), f"{key}={source}")
    config = identified(complete(config), {})
    digest, _ = newest(source)
    file = Checkpoints(source / "checkpoints").newest()
    kept = file.read_bytes()
    state = torch.load(file, weights_only=True)
    torch.save({**state, "extra": 1}, file)  # the manifest tells another digest than the file has
    with pytest.raises(ValueError, match=f"{file} has the digest {file_sha256(file)}, but {digest} was asked for"):
        build.build(config)
    file.write_bytes(kept)
    build.build(config)
    train_on(source, keep=1)
    other, _ = newest(source)
    for act in (feasible.check, build.build):
        with pytest.raises(ConfigError) as told:
            act(config)
        assert len(told.value.problems) == 1
        assert f"{key}={source}: the checkpoint with the digest {digest}" in told.value.problems[0]
        assert other in told.value.problems[0]


@pytest.mark.parametrize("given", [None, "0" * 64])
@pytest.mark.parametrize("key", CHECKPOINTS)
def test_a_file_where_a_run_folder_is_wanted_is_told_with_its_key(tmp_path, key, given):
    (file := tmp_path / "weights.pt").touch()
    config = with_value(with_value(complete(composed(*DIGITS)[0][1]), key, str(file)), CHECKPOINTS[key], given)
    with pytest.raises(ConfigError) as told:
        checkpoint(config, key)
    assert told.value.problems == [
        f"{key}={file} is a file, and no run's folder; give a run's folder, e.g. outputs/default/<run id>"
    ]


def test_masks_are_identified_by_their_digest_and_not_by_who_says_it(source, tmp_path):
    command = ("sparsity=static", "sparsity.density=null", "sparsity.distribution.name=none", "sparsity.init.name=file")
    ((_, given),) = composed(
        *DIGITS, *command, f"sparsity.init.path={source}", f"sparsity.init.digest={newest(source)[0]}"
    )
    ((_, found),) = composed(*DIGITS, *command, f"sparsity.init.path={source}")
    assert run_id(identified(complete(given), {})) == run_id(identified(complete(found), {})) != run_id(complete(found))


def test_a_source_that_is_just_saving_is_found(source, monkeypatch):
    """Between the look at the list and that at the file, the source has replaced its only checkpoint."""
    digest, _ = newest(source)
    find, looks = Checkpoints.newest, []

    def too_late(self):
        looks.append(1)
        found = find(self)
        return found.with_name("gone.pt") if len(looks) == 1 else None if len(looks) == 2 else found

    monkeypatch.setattr(Checkpoints, "newest", too_late)
    assert started_from(source).model.weights_digest == digest
    assert len(looks) == 3


def test_queued_runs_carry_the_digests_of_what_they_start_from(source, tmp_path):
    queued = frozen(tmp_path, *DIGITS, "sparsity=dense", f"model.weights={source}")
    digest, _ = newest(source)
    assert json.loads((Path(queued.folder) / "run.json").read_text())["identity"]["model.weights_digest"] == digest
    train_on(source, keep=1)
    ended = carry_out(queued)
    assert ended.returncode == 2
    status = read_status(Path(queued.folder))
    assert status["state"] == "failed"
    assert {digest, newest(source)[0]} <= set(re.findall("[0-9a-f]{64}", status["error"]))
