"""Published figures are read strictly, and stand beside those of one's own only where both are of one experiment."""

import math

import pandas as pd
import pytest

from analysis import published as module
from analysis.published import COLUMNS, PublishedError, difference, published, read_published

LINE = "rigl_itop,imagenet,resnet50,0.2,100,accuracy,75.84,0.05,somewhere,paper"
OWN = {"method": "rigl_itop", "data": "imagenet", "model": "resnet50", "density": 0.2, "budget": 100, "accuracy": 75.5}


def file_of(folder, *lines, columns=COLUMNS):
    file = folder / "published.csv"
    file.write_text("\n".join([",".join(columns), *lines]) + "\n", encoding="utf-8")
    return file


def value_of(method, density, budget, metric, source):
    figures = published()
    (value,) = figures[
        (figures["method"] == method)
        & (figures["dataset"] == "imagenet")
        & (figures["density"] == density)
        & (figures["budget"] == budget)
        & (figures["metric"] == metric)
        & figures["source"].str.startswith(source)
    ]["value"]
    return value


def test_the_file_has_the_figures_of_the_papers_tables():
    itop = "Shiweiliuiiiiiii/In-Time-Over-Parameterization results.jpg"
    assert value_of("rigl_itop", 0.2, 100, "accuracy", itop) == 75.84
    assert value_of("rigl_itop", 0.1, 200, "rs", itop) == 0.89
    assert value_of("dense", 1, 102, "flops_train", itop) == 3.2e18
    figures = published()
    assert list(figures.columns) == list(COLUMNS)
    assert set(figures["kind"]) == {"readme", "paper", "third_party"}
    strs = figures[figures["source"].str.startswith("RAIVNLab/STR")]
    assert len(strs) == 10
    assert len(figures[figures["source"].str.contains("rigl-reproducibility")]) == 8


def test_the_known_wrong_cell_stands_as_published_beside_the_right_one():
    assert value_of("rigl", 0.1, 510, "flops_train_ratio", "Shiweiliuiiiiiii/In-Time-Over-Parameterization") == 0.25
    assert value_of("rigl", 0.1, 510, "flops_train_ratio", "google-research/rigl") == 1.23


def test_no_figure_is_of_a_method_that_published_none():
    """AGENT, Sup-tickets and the ER methods have none, nor has ITOP on CIFAR."""
    figures = published()
    assert not figures["method"].str.contains("agent|ticket|edge_popup|random_pruning").any()
    cifar = figures[figures["dataset"].str.startswith("cifar")]
    assert not cifar["method"].str.contains("itop").any()


def test_a_change_to_what_is_returned_changes_nothing_that_others_get():
    figures = published()
    figures["value"] = 0.0
    assert value_of("rigl", 0.2, 510, "accuracy", "google-research/rigl") == 77.17


def test_numbers_are_numbers_and_what_is_not_told_is_missing(tmp_path):
    figures = read_published(
        file_of(tmp_path, LINE, "dsb,imagenet,resnet50,0.5,,accuracy,76.33,,elsewhere,third_party")
    )
    assert figures.loc[0, "value"] == 75.84
    assert math.isnan(figures.loc[1, "budget"])
    assert math.isnan(figures.loc[1, "std"])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("method", "RigL", "a label, or a label with what was changed in it"),
        ("dataset", "", "a name as this program has it"),
        ("model", "ResNet-50", "a name as this program has it"),
        ("density", "0", r"a number in (0, 1]"),
        ("density", "80", r"a number in (0, 1]"),
        ("budget", "-1", "epochs above 0, or nothing"),
        ("metric", "top1", "one of accuracy, rs, flops_train_ratio"),
        ("value", "175.8", r"a number in [0, 100]"),
        ("value", "nan", r"a number in [0, 100]"),
        ("value", "", r"a number in [0, 100]"),
        ("std", "-0.1", "a number of at least 0, or nothing"),
        ("source", " ", "where it is published"),
        ("kind", "blog", "one of readme, paper, third_party"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_and_what_is_allowed(name, value, allowed, tmp_path):
    cells = dict(zip(COLUMNS, LINE.split(","), strict=True)) | {name: value}
    with pytest.raises(PublishedError) as error:
        read_published(file_of(tmp_path, LINE, ",".join(cells.values())))
    assert f"line 3: {name}={value!r} must be {allowed}" in str(error.value)


def test_a_figure_that_is_said_twice_is_refused(tmp_path):
    with pytest.raises(PublishedError, match="line 3: says again what a line above says"):
        read_published(file_of(tmp_path, LINE, LINE))


def test_other_columns_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(PublishedError, match="they must be method, dataset, model"):
        read_published(file_of(tmp_path, columns=COLUMNS[:-1]))
    with pytest.raises(PublishedError, match="does not exist: published figures are in a checkout"):
        read_published(tmp_path / "nothing.csv")


def test_a_difference_is_ones_own_less_the_published():
    found = difference(OWN)
    assert found["difference"].round(2).to_list() == [-0.34, -0.3]
    assert found["value"].to_list() == [75.84, 75.8]


@pytest.mark.parametrize(
    "other", [{"method": "rigl"}, {"data": "cifar10"}, {"model": "wrn_22_2"}, {"density": 0.25}, {"budget": 102}]
)
def test_without_full_agreement_there_is_no_difference(other):
    assert difference(OWN | other).empty


def test_a_source_that_tells_no_budget_agrees_with_nothing():
    own = {"method": "dsb", "data": "imagenet", "model": "resnet50", "density": 0.5, "accuracy": 76.0}
    for budget in (105, None, math.nan):
        assert difference(own | {"budget": budget}).empty


@pytest.mark.parametrize("density", [None, math.nan, 1.0])
def test_dense_training_has_a_density_of_one(density):
    own = {"method": "dense", "data": "imagenet", "model": "resnet50", "density": density, "budget": 102}
    assert difference(own | {"accuracy": 77.0})["difference"].round(2).to_list() == [0.2]


def test_a_metric_that_nobody_publishes_is_refused():
    with pytest.raises(PublishedError, match="metric 'loss' is not published; allowed: accuracy, rs"):
        difference(OWN | {"loss": 1.0}, metric="loss")


def test_the_file_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_read", module._read.__wrapped__)
    assert isinstance(published(), pd.DataFrame)
    assert module.PUBLISHED.is_absolute()
