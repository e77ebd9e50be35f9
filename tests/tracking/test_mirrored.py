"""What wandb gets of a run: what is on record, cut to what wandb takes, each row of the history once and whole."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.config.schema import ConfigError
from dst.launcher.frozen import submitted_code
from dst.records.read import read_metrics
from dst.records.store import Record, RecordError
from dst.run.verified import frozen_config
from dst.tracking.described import began, description, destination, nested
from dst.tracking.limits import LONGEST_NAME, LONGEST_TAG, shortened
from dst.tracking.mirrored import History, best, read_book, with_nan
from dst.tracking.tables import MOST_ROWS, TABLES, compute, last_layers, layers_by_step, networks

CONFIG = {
    "model.name": "mlp", "data.name": "digits", "sparsity.label": "rigl", "output.group": "g",
    "tracking.tags": ["mine"], "tracking.notes": None, "tracking.project": "p", "tracking.entity": None,
}  # fmt: skip
ABOUT = {"name": "a run", "created": "2026-01-02T03:04:05+00:00", "config": CONFIG}


def made(folder, **config):
    with Record.create(folder, config_yaml="", run={**ABOUT, "config": {**CONFIG, **config}}):
        return folder


# -- what wandb takes --------------------------------------------------------------------------------------------------


@given(st.text(max_size=300), st.sampled_from([LONGEST_TAG, LONGEST_NAME]))
def test_what_is_too_long_keeps_its_ends(text, longest):
    short = shortened(text, longest)
    assert len(short) == min(len(text), longest)
    assert (short == text) == (len(text) <= longest)
    if len(text) > longest:
        middle = longest - longest // 3 - 3
        parts = short[:middle], short[middle : middle + 3], short[middle + 3 :]
        assert parts == (text[:middle], "...", text[-(longest // 3) :])


def test_all_that_is_sent_of_a_run_is_what_wandb_takes(tmp_path):
    import wandb

    label = "rigl_itop " + " ".join(f"drop_fraction.initial={number / 10}" for number in range(9))
    folder = made(
        tmp_path / "abc",
        **{"sparsity.label": label, "output.group": "g/" * 90, "tracking.tags": ["", "mine", "x" * 65, "mlp"]},
    )
    found = description(folder)
    wandb.Settings(run_tags=found["tags"], project=destination(folder)[0], run_id=found["id"])  # raises what it refuses
    assert found["tags"] == ["mlp", "digits", shortened(label, 64), "mine", "x" * 40 + "..." + "x" * 21]
    assert found["tags"][2].startswith("rigl_itop drop_fraction.initial=0.0 ")
    assert len(found["group"]) == 128
    assert found["job_type"] == "train"
    assert found["config"]["sparsity"]["label"] == label


def test_what_wraps_the_method_is_a_tag(tmp_path):
    identity = {"correction.name": "agent", "correction.gamma": 0.2, "procedure.name": "sup_tickets"}
    with Record.create(tmp_path / "abc", config_yaml="", run={**ABOUT, "identity": identity}):
        assert description(tmp_path / "abc")["tags"] == ["mlp", "digits", "rigl", "agent", "sup_tickets", "mine"]


def test_what_was_swept_is_in_the_name(tmp_path):
    run = {**ABOUT, "swept": {"seed": "0", "schedule": "digits", "schedule.epochs": "03"}}
    run["config"] = {**CONFIG, "schedule.epochs": 3, "seed": 0}
    with Record.create(tmp_path / "abc", config_yaml="", run=run):
        assert description(tmp_path / "abc")["name"] == "a run seed=0 schedule=digits schedule.epochs=3"


def test_whoever_reads_run_json_is_told_which_field_is_damaged(tmp_path):
    with Record.create(tmp_path / "abc", config_yaml="", run={**ABOUT, "config": [], "code": {"digest": 7}}):
        readers = (destination, description, began, frozen_config, submitted_code)
    for read in readers:
        with pytest.raises((RecordError, ConfigError), match=r"abc/run\.json: config must be a mapping, but is \[\]"):
            read(tmp_path / "abc")


def test_dotted_keys_are_mappings_within_mappings():
    assert nested({"seed": 0, "a.b.c": 1, "a.b.d": [2], "a.e": None}) == {
        "seed": 0,
        "a": {"b": {"c": 1, "d": [2]}, "e": None},
    }


@pytest.mark.parametrize("project", ["a/b", "what?", "a:b", "50%", "#1", "a\\b", "x" * 129, " ", "tab\there"])
def test_projects_that_wandb_refuses_are_told_before_anything_is_sent(project, tmp_path):
    with pytest.raises(ValueError, match=r"^project="):
        destination(made(tmp_path / "abc", **{"tracking.project": project}))
    assert destination(tmp_path / "abc", "other", "us") == ("other", "us")


def test_runs_that_were_not_tracked_have_a_project_too(tmp_path):
    assert destination(made(tmp_path / "abc", **{"tracking.project": None})) == ("dst", None)


# -- times, numbers, layers --------------------------------------------------------------------------------------------


def test_a_run_began_with_its_first_attempt_or_when_it_was_made(tmp_path):
    assert began(made(tmp_path / "abc")) == 1767323045
    record = Record.open(tmp_path / "abc")
    record.log_attempt(1, started=1767323999.5)
    record.log_attempt(2, started=1767329999.5)
    assert began(tmp_path / "abc") == 1767323999.5


def test_numbers_that_were_not_finite_are_such_again():
    row = with_nan({"lr": None, "step": 1})
    assert math.isnan(row["lr"])
    assert row["step"] == 1


def test_the_table_has_the_last_counts_of_each_layer(tmp_path):
    with Record.open(made(tmp_path / "abc")) as record:
        for step in (0, 10, 20):
            layers = [{"layer": name, "size": 8, "active": 4, "explored": 4 + step} for name in ("b", "a")]
            record.log_layers(step=step, attempt=1, rows=layers)
        record.mark_resume(step=10, attempt=2)
    assert last_layers(tmp_path / "abc")[1] == [["b", 8, 4, 0.5, 14], ["a", 8, 4, 0.5, 14]]


def test_tables_have_what_is_on_record_and_no_more(tmp_path):
    rows = [
        {"layer": "b", "size": 8, "active": 4, "explored": 6, "dropped": 1, "grown": 1, "reliable": 3},
        {"layer": "a", "size": 4, "active": 4, "explored": 4, "dropped": 0, "grown": 0, "reliable": 4},
    ]
    network = {"phase": 1, "phase_name": "cycle 1", "name": "ticket 1", "density": 0.5, "active": 4}
    with Record.open(made(tmp_path / "abc")) as record:
        assert [make(tmp_path / "abc") for make in TABLES.values()] == [([], [])] * 4
        for step in (0, 10, 20):
            record.log_layers(step=step, attempt=1, rows=rows)
        record.log_network(step=5, attempt=1, **network)
        record.log_network(step=9, attempt=1, **{**network, "name": "superposed 1"}, loss=0.25, accuracy=0.75)
        record.log_compute(step=0, attempt=1, rows=[{"layer": "b", "density": 0.5, "choice": "masked"}])
        record.mark_resume(step=10, attempt=2, phase=2)
    assert last_layers(tmp_path / "abc") == (
        ["layer", "size", "active", "density", "explored", "reliable"],
        [["b", 8, 4, 0.5, 6, 3], ["a", 4, 4, 1.0, 4, 4]],
    )
    columns, found = layers_by_step(tmp_path / "abc")
    assert columns == ["step", "layer", "size", "active", "density", "explored", "dropped", "grown", "reliable"]
    assert found == [
        [step, *row] for step in (0, 10) for row in (["b", 8, 4, 0.5, 6, 1, 1, 3], ["a", 4, 4, 1.0, 4, 0, 0, 4])
    ]
    assert networks(tmp_path / "abc") == (
        ["phase", "phase_name", "step", "name", "density", "active", "val/loss", "val/accuracy"],
        [[1, "cycle 1", 5, "ticket 1", 0.5, 4, None, None], [1, "cycle 1", 9, "superposed 1", 0.5, 4, 0.25, 0.75]],
    )
    assert compute(tmp_path / "abc") == (["step", "layer", "density", "choice"], [[0, "b", 0.5, "masked"]])


@pytest.mark.parametrize(("updates", "every"), [(MOST_ROWS // 2, 1), (MOST_ROWS // 2 + 1, 2), (MOST_ROWS + 1, 3)])
def test_of_very_many_updates_the_table_has_every_nth_and_the_last(updates, every, tmp_path):
    rows = [{"layer": name, "size": 8, "active": 4, "explored": 4} for name in ("b", "a")]
    with Record.open(made(tmp_path / "abc")) as record:
        for step in range(updates):
            record.log_layers(step=step, attempt=1, rows=rows)
    _, found = layers_by_step(tmp_path / "abc")
    assert len(found) <= MOST_ROWS
    assert [row[0] for row in found[::2]] == [*range(updates - 1, -1, -every)][::-1]
    assert [row[1] for row in found] == ["b", "a"] * (len(found) // 2)


def test_the_best_of_the_history_is_told_beside_what_was_selected(tmp_path):
    with Record.open(made(tmp_path / "abc")) as record:
        assert best(tmp_path / "abc") == {}
        for step, (loss, accuracy) in enumerate([(0.5, 0.6), (math.nan, 0.9), (0.7, 0.8), (0.1, 0.99)]):
            record.log(step=step, epoch=0.0, attempt=1, values={"val/loss": loss, "val/accuracy": accuracy})
        record.mark_resume(step=2, attempt=2)  # which takes the last one back
    assert best(tmp_path / "abc") == {"val/accuracy_max": 0.9, "val/loss_min": 0.5}


# -- the history -------------------------------------------------------------------------------------------------------


class Server:
    """Keeps rows, and wandb's steps, which must grow."""

    def __init__(self):
        self.rows = []
        self.book = {}

    def session(self, folder):
        starting = self.rows[-1][0] + 1 if self.rows else 0
        return History(folder, starting, self.book)

    def take(self, history, *, is_over):
        for wandb_step, row in history.new(is_over=is_over):
            assert wandb_step > (self.rows[-1][0] if self.rows else -1)
            self.rows.append((wandb_step, row))
        if is_over:
            self.book = history.last


class Run:
    """Writes the same lines whatever befalls it: one a step and, each third step, one more; goes back when killed."""

    def __init__(self, folder, stride):
        self.folder, self.stride = folder, stride
        self.record = Record.open(folder)
        self.attempt, self.at, self.saved = 1, (0, "val"), (0, "val")
        """Its place, and that of its checkpoint: the last step, and the last line of that."""

    def go_on(self):
        step, name = self.at
        is_due = name == "train" and step % (3 * self.stride) == 0
        self.at = (step, "val") if is_due else (step + self.stride, "train")
        step, name = self.at
        self.record.log(step=step, epoch=0.0, attempt=self.attempt, values={name: step * len(name)})

    def die(self, rest):
        self.record.close()
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(rest)

    def start_again(self):
        self.record, self.attempt, self.at = Record.open(self.folder), self.attempt + 1, self.saved
        self.record.mark_resume(step=self.at[0], attempt=self.attempt)


ACTIONS = st.lists(
    st.sampled_from(["step"] * 6 + ["save", "look", "look", "killed", "sender killed", "torn"]), max_size=80
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS, stride=st.sampled_from([1, 5]))
def test_each_row_is_sent_once_and_whole_whatever_is_killed(tmp_path_factory, actions, stride):
    folder, server = made(tmp_path_factory.mktemp("runs") / "abc"), Server()
    run, history = Run(folder, stride), server.session(folder)
    for action in actions:
        if action == "step":
            run.go_on()
        elif action == "save":
            run.saved = run.at
        elif action == "look":
            server.take(history, is_over=False)
        elif action == "sender killed":
            history = server.session(folder)
        else:
            run.die('{"step": 3, "tr' if action == "torn" else "")
            server.take(history, is_over=True)
            run.start_again()
            history = server.session(folder)
    server.take(history, is_over=True)
    recorded = {row["step"]: plain(row) for row in read_metrics(folder)}
    arrived = {row["step"]: plain(row) for _, row in server.rows}  # where a row came twice, the last
    assert all(recorded[step].items() <= arrived[step].items() for step in recorded)
    assert [row["step"] for _, row in server.rows] == sorted(row["step"] for _, row in server.rows)
    twice = len(server.rows) - len(arrived)
    assert twice <= sum(action in ("killed", "torn") for action in actions)
    server.take(server.session(folder), is_over=True)
    assert len(server.rows) == len(arrived) + twice


def plain(row):
    return {name: value for name, value in row.items() if name not in ("attempt", "epoch")}


def test_what_is_only_being_written_waits(tmp_path):
    folder = made(tmp_path / "abc")
    history = History(folder, 0, {})
    with (folder / "metrics.jsonl").open("a") as file:
        for text in ('{"step": 1, "a": 1}\n{"step": 1, "b"', ': 2}\n{"step": 2, "a": 3}', "\n"):
            assert list(history.new(is_over=False)) == []
            file.write(text)
            file.flush()
    assert list(history.new(is_over=False)) == [(2, {"step": 1, "a": 1, "b": 2})]
    assert list(history.new(is_over=True)) == [(4, {"step": 2, "a": 3})]


def test_lines_that_are_none_are_passed_over(tmp_path):
    folder = made(tmp_path / "abc")
    lines = [
        "[1]",
        "{",
        '{"step": null}',
        '{"step": "1"}',
        '{"event": "resume"}',
        '{"event": "resume", "step": null}',
        "{}",
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1}', "\x00\x00"]))
    assert list(History(folder, 0, {}).new(is_over=True)) == [(2, {"step": 1})]


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"last": 3}', '{"last": {"step": 4, "names": 3}}'])
def test_a_damaged_book_is_none(text, tmp_path):
    folder = made(tmp_path / "abc")
    (folder / "wandb").mkdir()
    (folder / "wandb" / "sent.json").write_text(text)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (4, 5)))
    rows = History(folder, 9, read_book(folder).get("last", {})).new(is_over=True)
    assert [row["step"] for _, row in rows] == [5]
