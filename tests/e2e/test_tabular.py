"""Runs on tables: known by their content, resumed bit by bit, refused with exit code 2 where the file is not sound."""

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest

from dst.data import table_file
from dst.data.cache import table_digest
from dst.data.splits import train_val_split
from dst.records.catalog import find_runs
from dst.records.read import read_run, read_summary
from dst.run import build, sources
from tests.composed import compose_cells
from tests.e2e.test_command_line import SILENT
from tests.processes import REPOSITORY, run, run_folder, traces

SHORT = ("model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=3", "schedule.batch_size=32", *SILENT)
PEOPLE = ("data=tabular", "data.path=people.csv", "data.target=bought", "data.categorical=[job,zip code]")


def people(rows=200):
    """Return a table from which one can learn: who buys follows from age and job."""
    random = np.random.default_rng(0)
    age, job = random.integers(18, 80, rows), random.choice(["clerk", "nurse", "chef"], rows)
    bought = (age + 20 * (job == "nurse") > 50).astype(int)
    frame = pd.DataFrame({"age": age, "job": job, "zip code": random.integers(1, 4, rows), "bought": bought})
    frame["income"] = random.normal(3000, 500, rows).round(2)
    frame.loc[::17, "income"] = np.nan
    frame.loc[::23, "job"] = None
    return frame


@pytest.fixture
def place(tmp_path):
    """Return a folder with a table in people.csv."""
    people().to_csv(tmp_path / "people.csv", index=False)
    return tmp_path


def run_id(folder):
    return read_run(run_folder(folder / "outputs"))["id"]


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_a_network_learns_from_a_table_and_the_command_is_the_same_run_again(place):
    result = run(*PEOPLE, *SHORT, "schedule.epochs=20", "sparsity.density=0.5", cwd=place)
    assert result.code == 0, result.output
    assert "tabular(people.csv) mlp rigl_itop density=0.5 seed=0" in result.output
    summary = read_summary(run_folder(place / "outputs"))
    assert summary["test/accuracy"] > 0.85
    about = read_run(run_folder(place / "outputs"))
    identity = {name: value for name, value in about["identity"].items() if name.startswith("data.")}
    digest = hashlib.sha256((place / "people.csv").read_bytes()).hexdigest()
    wanted = {"data.target": "bought", "data.categorical": ["job", "zip code"]}
    assert identity == {"data.name": "tabular", "data.digest": digest, **wanted}
    again = run(*PEOPLE, *SHORT, "schedule.epochs=20", "sparsity.density=0.5", cwd=place)
    assert "is done already" in again.output


def test_the_same_file_elsewhere_is_the_same_run_and_another_content_another_one(place):
    assert run(*PEOPLE, *SHORT, cwd=place).code == 0
    (place / "below").mkdir()
    shutil.copy(place / "people.csv", place / "below" / "other name.txt")
    result = run(*PEOPLE, *SHORT, "data.path='below/other name.txt'", cwd=place)
    assert "is done already" in result.output
    (place / "people.csv").write_text((place / "people.csv").read_text().replace("chef", "cook"))
    result = run(*PEOPLE, *SHORT, cwd=place)
    assert (result.code, "is done already" in result.output) == (0, False)
    assert len(list(find_runs(place / "outputs"))) == 2


@pytest.mark.parametrize("method", ["sparsity=rigl_itop", "sparsity=dense"])
def test_a_kill_in_between_changes_nothing(place, tmp_path_factory, method):
    options = (*PEOPLE, *SHORT, method, "model.batch_norm=true", "checkpoint.every_steps=2")
    other = tmp_path_factory.mktemp("killed")
    shutil.copy(place / "people.csv", other)
    assert run(*options, cwd=place).code == 0
    assert run(*options, cwd=other, fault="kill:step:7").code == -9
    assert run(*options, cwd=other).code == 0
    assert traces(run_folder(other / "outputs")) == traces(run_folder(place / "outputs"))


def test_a_table_that_changed_is_noticed_where_its_content_is_given(place):
    digest = table_digest(str(place / "people.csv"))
    options = (*PEOPLE, *SHORT, f"data.digest={digest}", "checkpoint.every_steps=2")
    assert run(*options, cwd=place, fault="kill:step:3").code == -9
    with (place / "people.csv").open("a") as file:
        file.write("30,clerk,1,1,1000\n")
    result = run(*options, cwd=place)
    assert result.code == 2
    assert "data.path=people.csv: this is not the content that was asked for" in result.output
    assert f"data.digest={digest}" in result.output


def test_batch_norm_goes_with_tickets_and_corrections(place):
    tickets = ("procedure=sup_tickets", "procedure.pretrain_epochs=1", "procedure.cycle_epochs=1", "schedule.epochs=3")
    both = (*PEOPLE, *SHORT, *tickets, "correction=agent", "model.batch_norm=true", "sparsity.density=0.5")
    result = run(*both, cwd=place)
    assert result.code == 0, result.output
    without = run(*both, "procedure.batch_norm=average", cwd=place)
    assert without.code == 0, without.output
    plain = run(*both, "procedure.batch_norm=average", "model.batch_norm=false", cwd=place)
    assert plain.code == 2  # what it says about batch norm would be ignored


def test_a_batch_of_one_is_refused_with_batch_norm(place):
    options = (*PEOPLE, *SHORT, "model.batch_norm=true", "schedule.batch_size=11", "data.val_fraction=0.1")
    rows = 160 - 16
    assert rows % 11 == 1
    result = run(*options, cwd=place)
    assert result.code == 2
    assert "leave a batch of one, on which this model's batch norm cannot train" in result.output


def test_the_cells_of_a_sweep_share_the_table(place, monkeypatch):
    monkeypatch.chdir(place)
    read, encoded = [], []
    whole, fit = table_file.read_bytes, train_val_split
    monkeypatch.setattr(table_file, "read_bytes", lambda path: read.append(path) or whole(path))
    monkeypatch.setattr("dst.data.table.train_val_split", lambda *given: encoded.append(given) or fit(*given))
    build._load_once.cache_clear()
    build._encoded_once.cache_clear()
    cells = compose_cells(REPOSITORY / "conf", [*PEOPLE, "seed=0,1", "sparsity=set,rigl"], multirun=True)
    sets = {id(build.load_dataset(config)) for _, config in cells}
    assert (len(cells), len(sets), len(read), len(encoded)) == (4, 1, 1, 1)
    other = compose_cells(REPOSITORY / "conf", [*PEOPLE, "data.split_seed=1"], multirun=False)
    build.load_dataset(other[0][1])
    assert (len(read), len(encoded)) == (1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Refused before anything is recorded

REFUSED = {
    "no file": ("data.path=nowhere.csv", "data.path=nowhere.csv: there is no such file"),
    "a folder": ("data.path=.", "data.path=.: this is a folder or a device"),
    "no target": ("data.target=null", "data.target=null: which column holds the classes? One of 'age', 'job', "),
    "another target": ("data.target=bougth", "data.target=bougth: there is no such column: did you mean 'bought'?"),
    "text": ("data.categorical=[zip code]", "column 'job' is text: "),
    "what to say": ("data.categorical=[zip code]", "say data.categorical=[zip code,job]; cells of missing numbers"),
    "no categories": ("data.categorical=[]", "data.categorical=[]: must be a list of 1 or more"),
    "every row its class": (
        "data.target=income",
        "data.path=people.csv: target 'income' is missing in line 2, line 19",
    ),
    "size": ("data.size=8", "data.size=8 would be ignored: tabular is a table, not a set of images"),
    "mean": ("data.mean=[0.5]", "data.std=[1]", "data.mean=[0.5] and data.std=[1.0] are those of images"),
    "flip": ("data.augment.flip=true", "data.augment.flip=true is for images, but these samples are vectors"),
    "crop": ("data.augment.crop_padding=2", "data.augment.crop_padding=2 is for images"),
    "stream": ("data.storage=stream", "data.storage=stream: tabular is not a set of image files"),
    "layout": ("hardware.channels_last=true", "hardware.channels_last=true is for images, but the samples of"),
    "convolutions": ("model=resnet20", "model.hidden=null", "model resnet20 needs images (channels, height, width)"),
    "patches": ("model=vit_tiny", "model.hidden=null", "model vit_tiny needs images (channels, height, width)"),
    "too small a part": (
        "data.val_fraction=0.001",
        "data.path=people.csv: without its test set, data.val_fraction=0.001",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_training_and_says_why(place, case):
    *options, told = REFUSED[case]
    result = run(*PEOPLE, *SHORT, *options, cwd=place)
    assert result.code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output
    assert not list(find_runs(place / "outputs"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame.assign(bought=1), "target 'bought' has one class only, 1"),
        (lambda frame: frame.assign(bought=[2, *frame["bought"][1:]]), "class '2' has one row only (line 2)"),
        (lambda frame: frame.assign(income=None), "column 'income' has no value in any row"),
        (
            lambda frame: frame.assign(age=["young", *frame["age"][1:]]),
            "'age' is partly numbers, partly text: 'young' (l",
        ),
        (lambda frame: frame.head(0), "there is no row below the names of the columns"),
        (lambda frame: frame.drop(columns="job"), "data.categorical=job: there is no such column"),
    ],
    ids=["one class", "a class of one row", "all missing", "partly numbers", "no rows", "no column"],
)
def test_a_bad_file_is_named_with_what_is_wrong(place, change, told):
    change(people()).to_csv(place / "people.csv", index=False)
    result = run(*PEOPLE, *SHORT, cwd=place)
    assert result.code == 2, result.output
    assert "data.path=people.csv: " in result.output
    assert told in result.output
    assert not list(find_runs(place / "outputs"))


def test_options_of_tables_are_for_tables_only(place):
    result = run("data=digits", "data.path=people.csv", *SHORT, cwd=place)
    assert result.code == 2
    assert "data.path=people.csv would be ignored: data 'digits' takes no options" in result.output
    result = run("data=tabular", "data.target=bought", *SHORT, cwd=place)
    assert result.code == 2
    assert "data.target=bought would be ignored: data.path=breast_cancer is a table of scikit-learn" in result.output


# ---------------------------------------------------------------------------------------------------------------------
# What was, stays


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "digits"])
def test_bundled_tables_train(tmp_path, name):
    result = run("data=tabular", f"data.path={name}", *SHORT, "data.val_fraction=0", cwd=tmp_path)
    assert result.code == 0, result.output
    assert f"tabular({name}) mlp" in result.output


def test_the_digest_of_a_table_can_be_asked_for(place, capsys):
    assert sources.main(["tabular", str(place / "people.csv")]) == 0
    asked = capsys.readouterr().out.strip()
    run(*PEOPLE, *SHORT, f"data.digest={asked}", cwd=place)
    given = run_id(place)
    assert "is done already" in run(*PEOPLE, *SHORT, cwd=place).output
    assert run_id(place) == given
    assert sources.main(["tabular", str(place / "nothing.csv")]) == 2
