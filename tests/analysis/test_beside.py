import pytest

from analysis import published
from analysis.runs import load
from analysis.tables import results

WHERE = {"data.name": "imagenet", "model.name": "resnet50", "schedule.epochs": 102}
TITLE = "difference to published accuracies of equal data, model, density and budget, in points:"


@pytest.fixture
def figure():
    """ITOP's accuracy of RigL at density .1 and its 102 epochs."""
    figures = published.published()
    chosen = {"method": "rigl", "dataset": "imagenet", "model": "resnet50", "density": 0.1, "budget": 102}
    for name, value in {**chosen, "metric": "accuracy"}.items():
        figures = figures[figures[name] == value]
    return figures.iloc[0]


def test_what_is_published_stands_beside_the_same_experiment(tmp_path, add_run, figure):
    for seed, more in enumerate((0.01, 0.03)):
        add_run(tmp_path, "g", "rigl", seed, figure["value"] / 100 + more, **WHERE)
    table = results(load([tmp_path]))
    assert table.differences[0] == TITLE
    name = "imagenet resnet50 rigl density=0.1"
    assert table.differences[1] == f"  {name}: +2.00 to {figure['value']:.2f} ({figure['source']})"
    assert table.numbers["to_published"].tolist() == pytest.approx([2])


@pytest.mark.parametrize(
    "other",
    [
        {"data.name": "cifar10"},
        {"model.name": "mlp"},
        {"density": 0.15},
        {"schedule.epochs": 3},
        {"schedule.multiplier": 7},
        {"schedule.max_steps": 10},
        {"procedure.name": "sup_tickets"},
    ],
)
def test_where_anything_differs_there_is_no_difference_to_it(tmp_path, add_run, other):
    add_run(tmp_path, "g", "rigl", 0, 0.7, **{**WHERE, **other})
    table = results(load([tmp_path]))
    assert table.differences == []
    assert "published" not in table.numbers


def test_without_the_file_of_published_figures_nothing_is_said(tmp_path, add_run, monkeypatch):
    monkeypatch.setattr("analysis.beside.PUBLISHED", tmp_path / "nowhere.csv")
    add_run(tmp_path, "g", "rigl", 0, 0.7, **WHERE)
    assert results(load([tmp_path])).differences == []
