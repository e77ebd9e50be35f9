"""What lies frozen in a run folder or below ``.code`` is used as it was recorded, or not at all."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest

from dst.config.launcher import LauncherSettings
from dst.config.schema import ConfigError, complete
from dst.files import sha256
from dst.launcher import frozen as frozen_module
from dst.launcher import node, requeue
from dst.launcher import submit as submitting
from dst.launcher.frozen import freeze, freeze_again, frozen_code, read_frozen, submitted_code
from dst.launcher.observe import observe
from dst.launcher.request import imports
from dst.records.lock import locked
from dst.records.provenance import code_digest, code_version, pasteable
from dst.records.read import read_json, read_status
from dst.records.store import Record
from dst.run.cell import Cell, cells
from dst.run.resume import refreeze
from tests.composed import compose_cells
from tests.processes import REPOSITORY, run

TINY = ("model.hidden=[8]", "schedule.epochs=1", "sparsity=static", "tracking=none")
SETTINGS = LauncherSettings("local")


def _python(arguments, environment):
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def config(*overrides):
    ((_, found),) = compose_cells(REPOSITORY / "conf", [*TINY, *overrides], multirun=False)
    return complete(found)


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """A run that was frozen and submitted, and has failed."""
    monkeypatch.chdir(tmp_path)
    frozen = freeze(cells([config()])[0], "a command")
    code = str(frozen_code(tmp_path / "outputs"))
    by = {"cluster": "local", "job": "999999", "host": os.uname().nodename, "process_started": "never", "code": code}
    record = Record.open(Path(frozen.folder))
    record.write_launch({**by, "settings": asdict(SETTINGS), "cwd": str(tmp_path)})
    record.write_status("failed", attempt=1, step=0, error="it failed")
    return frozen


@pytest.fixture
def submitted(monkeypatch):
    """What would have been submitted."""
    found = []

    def take(runs, *_, **__):
        found.extend(runs)
        return submitting.Submission(["1"], Path("logs"))

    monkeypatch.setattr(submitting, "send", take)
    return found


CHANGES = {
    "a line of shell": lambda text: text.replace("setup: []", "setup: ['touch owned']"),
    "an interpolation": lambda text: text.replace("\nseed: 0", "\nseed: ${oc.env:SEED}"),
    "nothing in it": lambda text: "",
    "torn": lambda text: text[: len(text) // 2],
    "a missing key": lambda text: text.replace("\nseed: 0", ""),
    "another key": lambda text: f"{text}extra: 0\n",
    "a tag": lambda text: text.replace("\nseed: 0", "\nseed: !!int 0"),
    "an alias": lambda text: text.replace("\nseed: 0", "\nseed: &a 0\nextra: *a"),
}


@pytest.mark.parametrize(
    ("name", "is_forged"),
    [*((name, False) for name in CHANGES), *((name, True) for name in CHANGES if name != "a line of shell")],
)
def test_a_changed_config_is_executed_by_nobody(failed, submitted, capsys, monkeypatch, name, is_forged):
    """Forged: the digest on record was changed with it."""
    monkeypatch.setenv("SEED", "0")
    folder, text = Path(failed.folder), CHANGES[name](failed.config)
    assert text != failed.config
    path = folder / "config.yaml"
    path.write_text(text)
    known = sha256(text) if is_forged else failed.digest
    Record.open(folder).write_run({**read_json(folder / "run.json"), "config_digest": known})
    reason = "this is no config of a run" if is_forged else "is not what was recorded in run.json"

    assert requeue.main(["outputs"]) == 2
    told = capsys.readouterr().err
    assert (f"{folder.name}/config.yaml" in told, reason in told) == (True, True)
    assert submitted == []
    assert path.read_text() == text
    assert read_status(folder)["error"] == "it failed"

    Record.open(folder).write_status("queued", attempt=1, step=0)
    assert node.main([failed.folder, "--digest", known]) == 2
    status = read_status(folder)
    assert (status["state"], str(path) in status["error"]) == ("failed", True)
    assert ("this is no config of a run" if is_forged else "is not what was submitted") in status["error"]

    if not is_forged:
        submitted = submitting.submit(cells([config()]), LauncherSettings("local"), "a command")
        assert (list(submitted.left), submitted.submission) == ([folder.relative_to(Path.cwd())], None)
        assert "config.yaml is not what was recorded" in submitted.told()
        assert path.read_text() == text
    assert sorted(os.listdir(folder)) == ["config.yaml", "launch.json", "run.json", "status.json"]


@pytest.mark.parametrize("state", ["preempted", "running", "failed"])
def test_a_job_leaves_a_run_alone_that_was_continued_with_another_config_meanwhile(failed, capsys, state):
    folder = Path(failed.folder)
    record = Record.open(folder)
    refreeze(record, config("checkpoint.keep=3"), {})
    record.write_status(state, attempt=2, step=1, error="as it ended by hand")
    status = read_status(folder)
    assert node.main([failed.folder, "--digest", failed.digest]) == 2
    told = "it was continued with another config since this job was submitted"
    assert f"config.yaml: {told}" in capsys.readouterr().err
    assert read_status(folder) == status


def test_what_nobody_changed_is_requeued_beside_what_somebody_did(failed, submitted, capsys):
    other = freeze(cells([config("seed=1")])[0], "a command")
    shutil.copy(Path(failed.folder) / "launch.json", other.folder)
    Record.open(Path(other.folder)).write_status("failed", attempt=1, step=0)
    Path(failed.folder, "config.yaml").unlink()
    assert requeue.main(["outputs"]) == 2
    assert [run.folder for run, _ in submitted] == [other.folder]
    assert "config.yaml'): give the run's command again" in capsys.readouterr().err


def test_a_run_that_a_process_takes_up_meanwhile_keeps_its_state_and_is_not_submitted(failed):
    """By hand, between the moment at which it was observed and that at which it would be frozen."""
    folder = Path(failed.folder)
    record = Record.open(folder)
    left = {}
    with locked(folder):
        record.write_status("running", attempt=2, step=3)
        work = {
            folder: lambda: freeze_again(failed, config()),
            folder / "x": lambda: (freeze(Cell(config(), folder), ""), config()),
        }
        assert submitting._send(work, SETTINGS, folder, left) == ({}, None)
    assert left == dict.fromkeys(work, "a process has begun to carry it out")
    assert read_status(folder)["state"] == "running"


@pytest.mark.parametrize(
    ("state", "remedy"), [("failed", ""), ("preempted", " --preempted"), ("cancelled", " --preempted"), ("done", None)]
)
def test_what_requeueing_would_not_submit_is_not_told_to_be_requeued(failed, submitted, state, remedy):
    """Such as a run that was done and whose figures are gone."""
    folder = Path(failed.folder)
    Record.open(folder).write_status(state, attempt=1, step=0)
    (observed,) = observe([folder])
    command = f"to continue it with the code of its submission: {pasteable('dst.launcher.requeue')} "
    told = [] if remedy is None else [f"{command}{folder}{remedy}"]
    assert submitting._remedy(Cell(config(), folder), observed) == told
    for line in told:
        assert requeue.main(line.removeprefix(command).split()) == 0
    assert len(submitted) == len(told)


def test_a_run_in_a_group_that_is_a_link_is_requeued_with_its_code(failed, submitted, tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "outputs" / "default").rename(tmp_path / "big disk" / "default")
    (tmp_path / "outputs" / "default").symlink_to(tmp_path / "big disk" / "default")
    assert requeue.main(["outputs"]) == 0
    assert [Path(run.folder).name for run, _ in submitted] == [Path(failed.folder).name]


def second_attempt(old, newer):
    """Make a second attempt folder of a run, and return it."""
    shutil.copytree(old, newer)
    Record.open(newer).write_run({**read_json(newer / "run.json"), "attempt_folder": 2})
    return newer


@pytest.mark.parametrize(("group", "is_live"), [("default", True), ("default", False), ("other", True)])
def test_an_attempt_that_is_superseded_is_not_requeued(failed, submitted, capsys, group, is_live):
    """Whatever has become of the newer one, and though only the older one was asked for."""
    old = Path(failed.folder)
    newer = second_attempt(old, Path("outputs", group, f"{old.name}.2").resolve())
    Record.open(newer).write_status("running" if is_live else "done", attempt=1, step=1)
    with locked(newer) if is_live else nullcontext():
        assert requeue.main([failed.folder, "--dry-run"]) == 0
        assert requeue.main(["outputs"]) == 0
        assert (
            submitting.submit_again({old: read_frozen(old)}, SETTINGS, ("failed",), submitted_code(old)).submitted == []
        )
    assert submitted == []
    told = f"left alone, since {newer} is another attempt at it that is newer or goes on: {old}\n"
    assert capsys.readouterr().out == f"{told}0 runs would be submitted\n{told}"


def test_beside_an_older_attempt_that_goes_on_none_is_requeued(failed, submitted):
    old = Path(failed.folder)
    newer = second_attempt(old, old.with_name(f"{old.name}.2"))
    with locked(old):
        assert requeue.main(["outputs"]) == 0
    assert submitted == []
    assert requeue.main(["outputs"]) == 0
    assert [run.folder for run, _ in submitted] == [str(newer)]


def test_by_hand_a_changed_config_is_refused_and_one_that_is_gone_or_new_is_written(tmp_path):
    begun = run(*TINY, cwd=tmp_path, fault="kill:step:2")
    assert begun.code < 0
    (folder,) = (tmp_path / "outputs" / "default").iterdir()
    path, about = folder / "config.yaml", folder / "run.json"
    text = path.read_text()
    path.write_text(text.replace("progress: auto", "progress: plain"))
    result = run(*TINY, cwd=tmp_path)
    assert (result.code, f"{folder.name}/config.yaml is not what was recorded" in result.output) == (2, True)
    assert read_json(about)["config_digest"] == sha256(text)

    # Killed between the two files when it was to go on with another config: the same command again goes on.
    path.write_text(text.replace("keep: 2", "keep: 3"))
    assert run(*TINY, cwd=tmp_path).code == 2
    path.write_text(text.replace("keep: 2", "keep: 3"))
    assert run(*TINY, "checkpoint.keep=3", cwd=tmp_path, fault="kill:step:4").code < 0
    path.unlink()
    assert run(*TINY, "checkpoint.keep=3", cwd=tmp_path).code == 0
    assert sha256(path.read_text()) == read_json(about)["config_digest"]


def test_what_looks_like_an_interpolation_is_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = config()
    wanted.hardware.slurm.setup, wanted.tracking.tags = ["export X=${HOME}/x"], ["1e5"]
    run_ = freeze(cells([wanted])[0], "a command")
    assert node.frozen_config(Path(run_.folder), run_.digest) == wanted


def test_another_runs_config_is_refused_where_it_lies(failed, capsys):
    folder = Path(failed.folder)
    Record.open(folder).write_run({**read_json(folder / "run.json"), "id": "0123456789ab"})
    assert requeue.main(["outputs"]) == 2
    assert f"is the config of run {folder.name}, and run.json is of 0123456789ab" in capsys.readouterr().err


def test_a_run_whose_folder_was_renamed_is_requeued_and_its_copy_is_not(failed, submitted, capsys):
    folder = Path(failed.folder)
    renamed = folder.rename(folder.with_name("pilot"))
    shutil.copytree(renamed, folder.with_name("a copy"))
    assert requeue.main(["outputs"]) == 0
    assert [run.folder for run, _ in submitted] == [str(renamed.resolve())]
    told = capsys.readouterr().err
    assert f"note: run {folder.name} is in outputs/default/pilot, which was renamed\n" in told
    assert f"note: run {folder.name} is also in outputs/default/a copy: outputs/default/pilot counts\n" in told


def test_a_schema_that_somebody_changed_is_told_and_nothing_asks_itself_for_ever(failed, submitted, capsys):
    folder = Path(failed.folder)
    Record.open(folder).write_run({**read_json(folder / "run.json"), "schema": 0})
    assert requeue.main(["outputs"]) == 2
    assert f"it was submitted with this very code: outputs/default/{folder.name}/run.json was changed" in (
        capsys.readouterr().err
    )
    assert submitted == []


@pytest.fixture
def code(tmp_path):
    place = frozen_code(tmp_path)
    assert place.name == code_digest(place / "dst") == code_version()["digest"]
    return place


@pytest.mark.parametrize(
    ("file", "told"),
    [("dst/training/loop.py", "it has the digest"), ("dst/new.py", "it has the digest"), ("torch.py", "has torch.py")],
)
def test_changed_code_is_not_submitted(code, file, told):
    with (code / file).open("a") as source:
        source.write("# changed\n")
    with pytest.raises(ConfigError, match=f"{code.name} is not what was submitted: .*{told}") as error:
        frozen_code(code.parents[1])
    assert f"cancel the jobs that use it, remove {code} alone, and submit again" in str(error.value)
    shutil.rmtree(code)
    assert code_digest(frozen_code(code.parents[1]) / "dst") == code.name


def test_changed_code_is_not_submitted_again(failed, submitted, capsys):
    code = Path(read_json(Path(failed.folder) / "launch.json")["code"])
    with (code / "dst" / "seeding.py").open("a") as source:
        source.write("# changed\n")
    assert requeue.main(["outputs"]) == 2
    assert f"the code in {code} is not what was submitted" in capsys.readouterr().err
    assert (submitted, read_status(Path(failed.folder))["state"]) == ([], "failed")


def test_changed_code_runs_nothing_on_the_node(failed, code):
    """In a process of its own, with the variables that a job has."""
    folder = Path(failed.folder)
    Record.open(folder).write_status("queued", attempt=0, step=0)
    command = ["-m", "dst.launcher.node", str(folder), "--digest", failed.digest]
    with (code / "dst" / "seeding.py").open("a") as source:
        source.write("# changed\n")
    done = _python(command, imports(code))
    assert done.returncode == 2, done.stderr
    status = read_status(folder)
    assert (status["state"], status["attempt"]) == ("failed", 0)
    assert f"the code in {code / 'dst'} is not what was submitted" in status["error"]
    assert f"remove {code} alone" in status["error"]
    assert code.name in status["error"]


def test_code_is_read_once_a_submission_and_not_again_by_a_run(code, monkeypatch):
    read = []
    monkeypatch.setattr(frozen_module, "code_digest", lambda place: read.append(place) or code.name)
    assert frozen_code(code.parents[1]) == code
    assert read == [code / "dst"]
    monkeypatch.setenv("DST_CODE", code.name)
    frozen_module.check_code()  # has what the record of the run has
    assert len(read) == 1
