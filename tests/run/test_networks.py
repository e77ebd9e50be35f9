"""Networks that a run makes on the way: on record, kept if asked for, and made again after a resume."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dst.cli import main
from dst.records.read import read_attempts, read_networks, read_status
from dst.training.checkpoint import Checkpoints
from dst.training.loop import Training
from dst.training.phase import Network
from tests.composed import last_given
from tests.limits import largest_file
from tests.processes import run_folder

CONF = Path(__file__).parents[2] / "conf"
COMMAND = (
    *("sparsity=rigl_itop", "model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10"),
    *("tracking=none", "tracking.progress=none", "hardware.threads=1", "tracking.every_steps=10"),
    *("checkpoint.every_steps=14", "output.root=outputs"),
)
KEEP = (*COMMAND, "output.keep_networks=true")
MADE = {10: ["first"], 20: ["ticket 1", "superposed 1"]}
"""Steps -> names of the networks that are made after them."""


@pytest.fixture
def after_step(monkeypatch, tmp_path):
    """Return what is done after a step (step -> function without arguments); networks are made before it."""
    monkeypatch.chdir(tmp_path)
    take, todo = Training.train_step, {}

    def train_step(self, inputs, labels, observer, *more):
        take(self, inputs, labels, observer, *more)
        step, active = self.counters.step, self.sparsifier.topology.active
        for name in MADE.get(step, []):
            network = Network(0, "train", step, name, self.sparsifier.density, active, 0.5, step / 100)
            observer.on_network(network, self.state_dict())
        if step in todo:
            todo.pop(step)()

    monkeypatch.setattr(Training, "train_step", train_step)
    return todo


def trained(*overrides):
    """Run a command in this process; return its exit code and its only run folder."""
    return main(last_given(overrides), conf=CONF), run_folder(Path("outputs"))


def rows(folder):
    return [(row["step"], row["name"], row["attempt"]) for row in read_networks(folder)]


def kept(folder):
    """Return the files of networks by name, as their content."""
    return {path.name: path.read_bytes() for path in sorted((folder / "networks").glob("*"))}


def fail():
    raise RuntimeError("boom")


def test_networks_are_on_record_and_kept_only_if_asked_for(after_step):
    code, folder = trained(*COMMAND)
    assert code == 0
    active, density = 118, 118 / 1184
    assert read_networks(folder) == [
        {
            **{"phase": 0, "phase_name": "train", "step": step, "attempt": 1, "name": name, "density": density},
            **{"active": active, "val/loss": 0.5, "val/accuracy": step / 100},
        }
        for step, names in MADE.items()
        for name in names
    ]
    assert not (folder / "networks").exists()


def test_what_is_kept_is_the_network_of_that_step_and_is_loaded_as_plain_data(after_step):
    code, folder = trained(*KEEP, "checkpoint.every_steps=10", "checkpoint.keep=9")
    assert code == 0
    assert list(kept(folder)) == ["first.pt", "superposed 1.pt", "ticket 1.pt"]
    for step, names in MADE.items():
        saved = torch.load(Checkpoints(folder / "checkpoints").path(step), weights_only=True)
        for name in names:
            found = torch.load(folder / "networks" / f"{name}.pt", weights_only=True)
            assert found.keys() == {"model", "sparsifier"}
            assert found["sparsifier"].keys() == {"masks"}
            for part, tensors in (("model", found["model"]), ("masks", found["sparsifier"]["masks"])):
                expected = saved["model"] if part == "model" else saved["sparsifier"]["masks"]
                assert tensors.keys() == expected.keys()
                assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


def test_to_keep_networks_is_no_part_of_the_run(after_step):
    _, folder = trained(*COMMAND)
    assert trained(*KEEP) == (0, folder)


def test_after_a_failure_networks_are_made_again_from_the_checkpoint_on(after_step):
    after_step[25] = fail
    code, folder = trained(*KEEP)
    assert (code, read_status(folder)["state"]) == (1, "failed")
    before = kept(folder)
    assert rows(folder) == [(10, "first", 1), (20, "ticket 1", 1), (20, "superposed 1", 1)]
    (folder / "networks" / "ticket 1.pt").unlink()
    assert trained(*KEEP)[0] == 0
    assert rows(folder) == [(10, "first", 1), (20, "ticket 1", 2), (20, "superposed 1", 2)]
    assert kept(folder) == before


def test_after_a_stop_networks_are_not_made_again(after_step):
    after_step[25] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    code, folder = trained(*KEEP)
    assert (code, read_status(folder)["step"]) == (75, 25)
    before = (folder / "networks.jsonl").read_text()
    assert trained(*KEEP)[0] == 0
    assert (folder / "networks.jsonl").read_text() == before + (
        '{"event": "resume", "step": 25, "attempt": 2, "phase": 0}\n'
    )
    assert rows(folder) == [(10, "first", 1), (20, "ticket 1", 1), (20, "superposed 1", 1)]


@pytest.mark.parametrize(("failed", "attempt", "phase"), [(20, 2, 0), (25, 1, 1)])
def test_what_ends_a_phase_is_done_again_until_it_is_saved(after_step, monkeypatch, capsys, failed, attempt, phase):
    """The first phase ends after step 20, where networks are made: saved as the next phase's, of the same step."""
    take, state_dict, load_state_dict = Training.train_step, Training.state_dict, Training.load_state_dict
    now = {"phase": 0}

    def train_step(self, inputs, labels, observer, *more):
        take(self, inputs, labels, observer, *more)
        if self.counters.step == 20:
            now["phase"] = 1
            observer.on_checkpoint(20, self.state_dict())

    def saved(self):
        state = state_dict(self)
        return state | {"counters": state["counters"] | now}

    def loaded(self, state):
        counters = dict(state["counters"])
        now["phase"] = counters.pop("phase")
        load_state_dict(self, state | {"counters": counters})

    for name, function in (("train_step", train_step), ("state_dict", saved), ("load_state_dict", loaded)):
        monkeypatch.setattr(Training, name, function)
    after_step[failed] = fail
    code, folder = trained(*KEEP, "checkpoint.keep=9")
    assert code == 1
    now["phase"] = 0
    assert trained(*KEEP, "checkpoint.keep=9")[0] == 0
    assert rows(folder) == [(10, "first", 1), (20, "ticket 1", attempt), (20, "superposed 1", attempt)]
    assert f"continuing from step {20 if phase else 14}, 42 steps" in capsys.readouterr().out
    (marker,) = [line for line in (folder / "networks.jsonl").read_text().splitlines() if "event" in line]
    assert marker.endswith(f'"attempt": 2, "phase": {phase}}}')
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.pt")) == [
        *(f"phase_01_step_0000000{step}.pt" for step in (20, 28, 42)),
        "step_000000014.pt",
    ]


def test_a_full_disk_fails_clearly_and_loses_nothing(after_step, tmp_path, monkeypatch, capsys):
    """A network does not quite fit; histories and small files do."""
    _, undisturbed = trained(*KEEP)
    size = (undisturbed / "networks" / "first.pt").stat().st_size
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with largest_file(size - 1):
        code, folder = trained(*KEEP)
    assert (code, read_status(folder)["state"]) == (1, "failed")
    error = read_status(folder)["error"]
    assert error.startswith(f"OSError: cannot write network {folder}/networks/first.pt (")
    assert error.endswith("; earlier checkpoints are intact")
    assert read_status(folder).get("traceback") is None
    assert rows(folder) == []
    assert kept(folder) == {}
    assert trained(*KEEP)[0] == 0
    assert kept(folder) == kept(tmp_path / undisturbed)
    assert [row[:2] for row in rows(folder)] == [row[:2] for row in rows(tmp_path / undisturbed)]
    assert [attempt["state"] for attempt in read_attempts(folder)] == ["failed", "done"]


def test_two_networks_of_one_name_are_an_error_and_not_one(after_step, monkeypatch):
    monkeypatch.setitem(MADE, 15, ["first"])
    code, folder = trained(*KEEP)
    assert code == 1
    assert "a second network 'first' of one run: give each a name of its own" in read_status(folder)["error"]
    assert rows(folder) == [(10, "first", 1)]


NETWORK = Network(1, "cycle 1", 40, "ticket 1", 0.05, 59, None, None)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a\nb", "Ticket", "x" * 101, " a"])
def test_a_name_that_names_no_file_is_refused(name):
    with pytest.raises(ValueError, match=r"name=.*must be 1 to 100 lower-case letters, digits"):
        replace(NETWORK, name=name)
