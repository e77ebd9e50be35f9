"""The mirror holds what the record holds, and whatever happens to it, the run is the one without it (atol = 0)."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from dst.launcher.sync import main as sync
from dst.records.catalog import find_runs
from dst.records.read import read_compute, read_metrics, read_networks, read_status, read_summary
from dst.records.store import Record
from dst.tracking import tracker
from tests.processes import REPOSITORY, run, run_folder, traces, wait_until
from tests.tracking.servers import KEY, server
from tests.tracking.stub_server import stub_server

pytestmark = pytest.mark.slow

TINY = (
    "model.hidden=[16]",
    "schedule.epochs=2",
    "schedule.update_every=10",
    "tracking.every_steps=5",
    "tracking.progress=none",
    "hardware.threads=1",
)
OFFLINE = ("sparsity=rigl_itop", "tracking=wandb_offline", *TINY)
ONLINE = ("sparsity=rigl_itop", "tracking=wandb_online", *TINY)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """Traces and seconds of the same run without tracking."""
    folder = tmp_path_factory.mktemp("untracked")
    begun = time.monotonic()
    result = run("sparsity=rigl_itop", "tracking=none", *TINY, cwd=folder)
    assert result.code == 0, result.output
    assert not (run_folder(folder / "outputs") / "wandb").exists()
    return traces(run_folder(folder / "outputs")), time.monotonic() - begun


@pytest.fixture(scope="module")
def stub():
    with stub_server() as running:
        yield running


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, stub):
    folder = tmp_path_factory.mktemp("tracked")
    home = folder / "home"
    home.mkdir()
    more = ("tracking.tags=[mine]", "tracking.notes=why", "output.group=some/study")
    before = set(Path("/tmp").glob("dst-wandb-*"))
    result = run(*ONLINE, *more, cwd=folder, env={"HOME": str(home), **stub.env})
    assert result.code == 0, result.output
    assert set(Path("/tmp").glob("dst-wandb-*")) <= before
    return folder, run_folder(folder / "outputs"), result.output


def children(process):
    """Return the ids of a process's children."""
    listed = (path.read_text().split() for path in Path("/proc", str(process), "task").glob("*/children"))
    return [int(child) for children in listed for child in children]


def state(process):
    return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0]


def in_folder(folder):
    """Return the ids of all processes that were given a folder in their environment: mirrors, and wandb's own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{folder}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


# -- what is mirrored --------------------------------------------------------------------------------------------------


def arrived(stub, folder):
    """Return the history on the server, without what wandb adds."""
    rows = stub.run(folder.name).history
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def test_config_history_and_summary_arrive_while_the_run_trains(tracked, stub):
    _, folder, _ = tracked
    found = stub.run(folder.name)
    assert [project for project, name in stub.runs if name == folder.name] == ["dst"]
    assert found.about("groupName") == "some/study"
    assert found.about("jobType") == "train"
    assert found.about("displayName") == "digits mlp rigl_itop density=0.1 seed=0"
    assert found.about("notes") == "why"
    assert set(found.about("tags")) == {"mlp", "digits", "rigl_itop", "mine"}
    assert found.config["sparsity"]["value"]["drop_fraction"]["initial"] == 0.5
    assert found.config["schedule"]["value"]["epochs"] == 2
    metrics = found.config["_wandb"]["value"]["m"]
    assert [metrics[metric["5"] - 1]["1"] for metric in metrics if metric.get("2") == "*"] == ["step"]
    assert [line["_step"] for line in found.history] == [2 * row["step"] for row in read_metrics(folder)]
    assert arrived(stub, folder) == read_metrics(folder)
    assert read_summary(folder).items() <= found.summary.items()
    assert found.exit_code == 0


def test_a_run_without_validation_is_mirrored_without_its_figures(tmp_path, stub):
    result = run(*ONLINE, "data.val_fraction=0", cwd=tmp_path, env=stub.env)
    assert result.code == 0, result.output
    folder = run_folder(tmp_path / "outputs")
    assert arrived(stub, folder) == read_metrics(folder)
    found = stub.run(folder.name)
    assert read_summary(folder).items() <= found.summary.items()
    assert not [name for name in found.summary if name.startswith("val/")]


def tables(stub, folder):
    """Return the tables that arrived of a run, by their names without what wandb adds, and where they are shown."""
    arrived = {
        path.partition("/media/table/")[2].rpartition("_summary_")[0]: json.loads(data)
        for path, data in stub.uploads.items()
        if path.startswith(f"{folder.name}/media/table/")
    }
    shown = {
        name for name, value in stub.run(folder.name).summary.items() if isinstance(value, dict) and "ncols" in value
    }
    assert set(arrived) == shown
    return arrived


def test_the_tables_of_layers(tracked, stub):
    _, folder, _ = tracked
    found = tables(stub, folder)
    assert set(found) == {"sparsity/layers", "sparsity/layers_by_step"}
    assert found["sparsity/layers"]["columns"] == ["layer", "size", "active", "density", "explored"]
    rows = [json.loads(line) for line in (folder / "layers.jsonl").read_text().splitlines()]
    expected = [[x["layer"], x["size"], x["active"], x["active"] / x["size"], x["explored"]] for x in rows]
    assert found["sparsity/layers"]["data"] == expected[-2:]
    by_step = found["sparsity/layers_by_step"]
    assert by_step["columns"] == ["step", "layer", "size", "active", "density", "explored", "dropped", "grown"]
    assert [row[:6] for row in by_step["data"]] == [[x["step"], *row] for x, row in zip(rows, expected, strict=True)]
    assert len({row[0] for row in by_step["data"]}) > 3


def test_networks_compute_and_reliable_rs_arrive_after_an_offline_run(tmp_path, stub, monkeypatch, capsys):
    """As a procedure makes networks and layers are timed; nothing of it needs the server while training."""
    options = ("procedure=sup_tickets", "procedure.pretrain_epochs=1", "procedure.cycle_epochs=1")
    more = ("tracking.reliable_steps=9", "model.hidden=[64]", "schedule.epochs=3")
    timed = ("sparsity.compute=auto", "hardware.determinism=fast")
    assert run(*OFFLINE, *options, *more, *timed, cwd=tmp_path, env=stub.env).code == 0
    folder = run_folder(tmp_path / "outputs")
    assert not (folder / "wandb").exists()
    for name, value in stub.env.items():
        monkeypatch.setenv(name, value)
    assert sync([str(folder)]) == 0
    assert capsys.readouterr().out.startswith("sent ")
    found, summary = tables(stub, folder), read_summary(folder)
    for name, rows in {"networks": read_networks(folder), "compute": read_compute(folder)}.items():
        assert rows
        columns = found[name]["columns"]
        assert "attempt" not in columns
        told = [{k: v for k, v in zip(columns, row, strict=True) if v is not None} for row in found[name]["data"]]
        assert told == [{k: v for k, v in row.items() if k != "attempt"} for row in rows]
    assert found["sparsity/layers"]["columns"][-1] == "reliable"
    assert sum(row[-1] for row in found["sparsity/layers"]["data"]) > 0
    assert stub.run(folder.name).summary["sparsity/rs_reliable"] == summary["sparsity/rs_reliable"] > 0
    assert [row.get("sparsity/rs_reliable") for row in arrived(stub, folder)] == [
        row.get("sparsity/rs_reliable") for row in read_metrics(folder)
    ]


def test_no_number_arrives_that_is_not_on_record(tracked, stub):
    _, folder, _ = tracked
    found = {k: v for k, v in stub.run(folder.name).summary.items() if not (k.startswith("_") or isinstance(v, dict))}
    history, summary = read_metrics(folder), read_summary(folder)
    extremes = {
        "val/accuracy_max": max(row["val/accuracy"] for row in history if "val/accuracy" in row),
        "val/loss_min": min(row["val/loss"] for row in history if "val/loss" in row),
    }
    last = {name: value for row in history for name, value in row.items()}
    assert found == {**last, **extremes, **summary}


def test_what_is_plotted_and_over_what(tracked, stub):
    _, folder, _ = tracked
    metrics = stub.run(folder.name).config["_wandb"]["value"]["m"]
    hidden, no_summary_of_its_own = 2, [1]
    named = {metric["1"]: metric for metric in metrics if "1" in metric}
    assert {name for name, metric in named.items() if hidden in metric["6"]} == {
        "step",
        "epoch",
        "attempt",
        "time/seconds",
    }
    assert all(metric.get("7", []) in ([], no_summary_of_its_own) for metric in metrics)


def test_what_was_sent_while_training_is_not_sent_again(tracked, stub, monkeypatch, capsys):
    for name, value in stub.env.items():
        monkeypatch.setenv(name, value)
    before = len(stub.requests)
    assert sync([str(tracked[1])]) == 0
    assert capsys.readouterr().out.startswith("up to date")
    assert len(stub.requests) == before


def test_nothing_is_written_elsewhere_printed_or_left_running(tracked):
    folder, _, output = tracked
    assert sorted(path.name for path in folder.iterdir()) == ["home", "output.txt", "outputs"]
    assert list((folder / "home").iterdir()) == []
    assert "wandb" not in output
    assert "warning" not in output
    assert in_folder(folder / "outputs") == []


def test_the_result_is_the_same(tracked, untracked):
    assert traces(tracked[1]) == untracked[0]


# -- trouble -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["refuse", "hang", "500"])
def test_servers_that_are_no_help(kind, tmp_path, untracked):
    limit = 20.0  # the default
    with server(kind) as url:
        begun = time.monotonic()
        result = run(
            *ONLINE, f"tracking.timeout_s={limit}", cwd=tmp_path, env={"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        )
        lost = time.monotonic() - begun - untracked[1]
    assert result.code == 0, result.output
    assert lost < limit + 1
    assert result.output.count("warning") == 1
    told = r"the run goes on and its record is complete, send it later with: (\S+ )?python -m dst.launcher.sync"
    assert re.search(told, result.output)
    folder = run_folder(tmp_path / "outputs")
    assert traces(folder) == untracked[0]
    assert [path.name for path in (folder / "wandb").iterdir()] == ["lock"]
    assert f"{folder.relative_to(tmp_path)}\n" in result.output


def test_no_api_key(tmp_path, untracked):
    result = run(*ONLINE, cwd=tmp_path, env={"HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": "/dev/null"})
    assert result.code == 0, result.output
    assert result.output.count("warning") == 1
    assert traces(run_folder(tmp_path / "outputs")) == untracked[0]


FAKES = {
    "missing": "raise ModuleNotFoundError('No module named wandb', name='wandb')",
    "hanging": "import time; time.sleep(100)",
    "dying": "import os; os.kill(os.getpid(), 9)",
    "broken": "raise RuntimeError('half installed')",
}
TOLD = {
    "missing": "wandb: not installed: pip install wandb; the run goes on",
    "hanging": "wandb: not finished after 2 s",
    "dying": "wandb: its process ended unexpectedly",
    "broken": "wandb: half installed; the run goes on",
}


@pytest.mark.parametrize("kind", FAKES)
def test_wandbs_that_are_no_help(kind, tmp_path, untracked):
    (tmp_path / "wandb.py").write_text(FAKES[kind])
    result = run(*ONLINE, "tracking.timeout_s=2", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert result.code == 0, result.output
    assert f"warning: {TOLD[kind]}" in result.output
    assert result.output.count("warning") == 1
    assert traces(run_folder(tmp_path / "outputs")) == untracked[0]


def test_a_folder_that_cannot_be_made(tmp_path, untracked, stub):
    assert run(*OFFLINE, cwd=tmp_path, fault="kill:step:3").code == -9
    folder = run_folder(tmp_path / "outputs") / "wandb"
    folder.write_text("in the way")
    result = run(*ONLINE, cwd=tmp_path, env=stub.env)
    assert result.code == 0, result.output
    assert "warning: wandb: " in result.output
    assert str(folder) in result.output
    assert traces(folder.parent) == untracked[0]


def test_a_server_that_takes_no_history(tmp_path, untracked):
    """By itself wandb would call this run finished."""
    with stub_server() as stub:
        stub.refusing = Everything()
        result = run(*ONLINE, "tracking.timeout_s=10", cwd=tmp_path, env=stub.env)
    assert result.code == 0, result.output
    assert result.output.count("warning") == 1
    assert "warning: wandb: " in result.output
    assert traces(run_folder(tmp_path / "outputs")) == untracked[0]
    assert not list(tmp_path.glob("outputs/*/*/wandb/sent.json"))


class Everything:
    def __contains__(self, _):
        return True


# -- ends --------------------------------------------------------------------------------------------------------------


def ended(stub, folder):
    """Wait until the mirror of a killed run has sent how it ended."""
    wait_until((folder / "wandb" / "sent.json").exists, f"no book in {folder}")
    return stub.run(folder.name).exit_code


def test_a_killed_run_is_sent_whole_and_continues_under_its_id(tmp_path, untracked):
    """Killed after step 30, of which one line is on record, and one that says how it did on validation is not."""
    options = (*ONLINE, "checkpoint.every_steps=7")
    with stub_server() as stub:
        assert run(*options, cwd=tmp_path, env=stub.env, fault="kill:step:30").code == -9
        folder = run_folder(tmp_path / "outputs")
        assert ended(stub, folder) == 254
        assert [row["step"] for row in arrived(stub, folder)] == [5, 10, 15, 20, 21, 25]
        assert arrived(stub, folder) == read_metrics(folder)
        result = run(*options, cwd=tmp_path, env=stub.env)
        assert result.code == 0, result.output
        found = stub.run(folder.name)
    assert found.exit_code == 0
    assert [row["step"] for row in arrived(stub, folder)] == [row["step"] for row in read_metrics(folder)]
    assert [row["attempt"] for row in arrived(stub, folder)][5:7] == [1, 2]  # sent once, done twice to the same bits
    assert read_summary(folder).items() <= found.summary.items()
    assert traces(folder) == untracked[0]


def test_a_row_that_was_cut_off_by_a_kill_is_sent_whole_when_it_is_whole(tmp_path, untracked):
    """Killed within the validation after step 21: the step has one line of two."""
    options = (*ONLINE, "checkpoint.every_steps=7")
    with stub_server() as stub:
        assert run(*options, cwd=tmp_path, env=stub.env, fault="kill:evaluate:1").code == -9
        folder = run_folder(tmp_path / "outputs")
        assert ended(stub, folder) == 254
        assert "val/accuracy" not in arrived(stub, folder)[-1]
        assert run(*options, cwd=tmp_path, env=stub.env).code == 0
        rows = arrived(stub, folder)
    assert [row["step"] for row in rows][:7] == [5, 10, 15, 20, 21, 21, 25]
    assert "val/accuracy" in rows[5]
    assert rows[5].keys() > rows[4].keys()
    assert len(rows) == len(read_metrics(folder)) + 1


def test_stopped_on_request(tmp_path, untracked):
    with stub_server() as stub:
        result = run(*ONLINE, cwd=tmp_path, env=stub.env, fault="signal:SIGTERM:20")
        assert result.code == 75, result.output
        folder = run_folder(tmp_path / "outputs")
        assert read_status(folder)["state"] == "preempted"
        found = stub.run(folder.name)
        assert (found.exit_code, found.is_preempting) == (1, True)
        assert arrived(stub, folder)[-1]["step"] == 20
        assert run(*ONLINE, cwd=tmp_path, env=stub.env).code == 0
        assert found.exit_code == 0
    assert traces(folder) == untracked[0]


def test_diverged(tmp_path, stub):
    assert run(*ONLINE, cwd=tmp_path, env=stub.env, fault="nan:loss:15").code == 3
    assert stub.run(run_folder(tmp_path / "outputs").name).exit_code == 1


def test_every_run_of_a_sweep_is_finished(tmp_path):
    with stub_server() as stub:
        result = run("-m", *ONLINE, "seed=0,1,2", cwd=tmp_path, env=stub.env)
    assert result.code == 0, result.output
    assert [found.exit_code for found in stub.runs.values()] == [0, 0, 0]
    assert sorted(name for _, name in stub.runs) == sorted(path.name for path in find_runs(tmp_path / "outputs"))


def test_a_new_attempt_folder_is_a_run_of_its_own(tmp_path):
    with stub_server() as stub:
        assert run(*ONLINE, cwd=tmp_path, env=stub.env).code == 0
        assert run(*ONLINE, "output.resume=never", cwd=tmp_path, env=stub.env).code == 0
    first, second = sorted(find_runs(tmp_path / "outputs"))
    assert second.name == f"{first.name}.2"
    assert {name for _, name in stub.runs} == {first.name, second.name}


# -- the training process is left alone --------------------------------------------------------------------------------


CONFIG = {
    "model.name": "mlp", "data.name": "digits", "sparsity.label": "rigl", "output.group": "g", "tracking.tags": [],
    "tracking.notes": None, "tracking.project": "p", "tracking.entity": None,
}  # fmt: skip


@pytest.fixture
def reaching(stub, monkeypatch):
    for name, value in stub.env.items():
        monkeypatch.setenv(name, value)
    return stub


def begun(folder, timeout_s=20.0):
    """Make a record, and begin its mirror."""
    about = {"name": "a run", "created": "2026-01-02T03:04:05+00:00", "config": CONFIG}
    record = Record.create(folder, config_yaml="", run=about)
    record.write_status("running", attempt=1, step=0)
    mirror = tracker("online", timeout_s)
    mirror.begin(folder)
    return record, mirror


def log(record, mirror, step, **values):
    record.log(step=step, epoch=0.5, attempt=1, values=values)
    mirror.poll()


def end(record, mirror, state="done"):
    record.write_summary({"test/accuracy": 1.0})
    record.write_status(state, attempt=1, step=2)
    record.close()
    mirror.finish()


def surroundings():
    return [
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
        [signal.getsignal(number) for number in signal.valid_signals()],
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        threading.enumerate(),
        dict(os.environ),
        sorted(os.listdir("/proc/self/fd")),
        [name for name in sys.modules if name.split(".")[0] == "wandb"],
    ]


def test_the_process_is_as_before(tmp_path, reaching):
    end(*begun(tmp_path / "warm"))
    before = surroundings()
    record, mirror = begun(tmp_path / "one")
    log(record, mirror, 1, loss=float("nan"))
    end(record, mirror)
    assert surroundings() == before
    found = reaching.run("one")
    assert found.summary["test/accuracy"] == 1.0
    assert found.history[0]["step"] == 1
    assert math.isnan(found.history[0]["loss"])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR2", "SIGKILL"])
def test_signals_to_all_processes_lose_nothing(name, tmp_path, reaching):
    """Ctrl-C goes to a process group, SLURM's signals to a whole step; wandb's own process dies of most of them."""
    record, mirror = begun(tmp_path / name)
    log(record, mirror, 1, loss=1.0)
    worker = mirror._sending._process.pid
    wait_until(lambda: reaching.runs.get(("p", name)), "nothing arrived")
    core = children(worker)
    assert core
    for process in [worker, *core] if name != "SIGKILL" else core:
        os.kill(process, signal.Signals[name])
    time.sleep(0.2)
    log(record, mirror, 2, loss=0.5)
    end(record, mirror, "preempted")
    found = reaching.run(name)
    assert [row["step"] for row in found.history] == [1, 2]
    assert found.summary["test/accuracy"] == 1.0
    assert (found.is_preempting, found.exit_code) == (True, 1)
    assert not mirror._sending.is_running
    assert not any(Path(f"/proc/{process}").exists() and "Z" not in state(process) for process in [worker, *core])


def test_what_a_killed_mirror_has_sent_is_not_sent_again(tmp_path, reaching, capsys):
    record, mirror = begun(tmp_path / "cut")
    for step in range(1, 41):
        log(record, mirror, step, loss=1 / step)
    wait_until(lambda: ("p", "cut") in reaching.runs and reaching.run("cut").line_count, "nothing arrived")
    before = reaching.run("cut").line_count
    assert before < 40
    worker = mirror._sending._process.pid
    for process in [*children(worker), worker]:
        os.kill(process, signal.SIGKILL)
    for step in range(41, 61):
        log(record, mirror, step, loss=1 / step)
    end(record, mirror)
    assert "its process ended unexpectedly" in capsys.readouterr().err
    assert not list((tmp_path / "cut" / "wandb").glob("*.json"))
    assert sync([str(tmp_path)]) == 0
    found = reaching.run("cut")
    assert [row["step"] for row in found.history] == list(range(1, 61))
    assert found.lines_received == 60
    assert found.exit_code == 0


def test_a_server_that_comes_back_gets_all(tmp_path, monkeypatch, capsys):
    with server("refuse") as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        record, mirror = begun(tmp_path / "late")
        log(record, mirror, 1, loss=1.0)
        wait_until(lambda: mirror.poll() or capsys.readouterr().err.count("warning: wandb: "), "no warning")
    with stub_server(int(url.rpartition(":")[2])) as stub:
        log(record, mirror, 2, loss=0.5)
        end(record, mirror)
        assert [row["step"] for row in stub.run("late").history] == [1, 2]
    assert capsys.readouterr().err == ""
    assert (tmp_path / "late" / "wandb" / "sent.json").exists()


def test_a_mirror_that_does_nothing_never_blocks(tmp_path, reaching, capsys):
    record, mirror = begun(tmp_path / "stopped", timeout_s=0.5)
    os.kill(mirror._sending._process.pid, signal.SIGSTOP)
    at = time.monotonic()
    for step in range(5000):
        log(record, mirror, step, **{f"metric/{number}": 0.123456789 for number in range(4)})
    assert time.monotonic() - at < 2
    end(record, mirror)
    assert time.monotonic() - at < 4
    assert capsys.readouterr().err.count("warning: wandb: not finished after 0.5 s") == 1


def test_wandb_is_started_for_training_online_only(tmp_path):
    (tmp_path / "wandb.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    env = {"PYTHONPATH": str(tmp_path)}
    assert run(*OFFLINE, "tracking=none", cwd=tmp_path).code == 0
    for arguments, code in {
        ("--help",): 0,
        ("--cfg", "job"): 0,
        ("sparsity.density=7",): 2,
        ONLINE: 0,  # finished already, however it was tracked
        (*OFFLINE, "seed=1"): 0,  # sent later, on request
    }.items():
        assert run(*arguments, cwd=tmp_path, env=env).code == code
        assert not (tmp_path / "imported").exists()
    assert run(*ONLINE, "seed=2", cwd=tmp_path, env=env).code == 0
    assert (tmp_path / "imported").exists()


def test_in_a_process_that_ends_as_usual(tmp_path, stub):
    """Not forked, with exit hooks: nothing is printed at the end, nothing is left."""
    command = [sys.executable, str(REPOSITORY / "run.py"), *ONLINE, f"output.root={tmp_path}/outputs"]
    result = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **stub.env}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert in_folder(tmp_path) == []
