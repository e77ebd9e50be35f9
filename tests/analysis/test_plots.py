from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from analysis.names import COLOURS
from analysis.plots import accuracy_against_flops, history
from dst.records.catalog import catalog
from dst.records.store import Record


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(ax):
    """Return {label: (points, lengths of their error bars above and below together)}."""
    found = {}
    for container in ax.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        lengths = [segment[1][1] - segment[0][1] if len(segment) else 0.0 for segment in bars.get_segments()]
        found[container.get_label()] = (line.get_xydata().round(6).tolist(), np.round(lengths, 4).tolist())
    return found


def test_points_are_means_and_bars_are_deviations(tree):
    assert drawn(accuracy_against_flops(catalog(tree))) == {
        "dense": ([[1.0, 98.0]], [0.0]),
        "rigl": ([[0.24, 96.0]], [2.8284]),
        "set": ([[0.24, 92.0]], [4.0]),
    }


def test_axes_are_labelled_with_units_and_methods_are_told_apart(tree):
    ax = accuracy_against_flops(catalog(tree))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training FLOPs (ratio to dense training)", "test accuracy (%)")
    assert ax.get_title() == "digits, mlp"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["dense", "rigl", "set"]
    lines = [container.lines[0] for container in ax.containers]
    assert [line.get_color() for line in lines] == list(COLOURS[:3])
    assert len({line.get_marker() for line in lines}) == 3


def test_the_legend_lies_beside_the_data(tree):
    ax = accuracy_against_flops(catalog(tree))
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert legend.x0 > ax.get_window_extent().x1
    assert legend.x1 <= ax.figure.bbox.x1


def test_long_names_do_not_squeeze_the_data(tmp_path, add_run):
    add_run(tmp_path, "g", "a method of which the name is a whole sentence that goes on and on", 0, 0.9)
    ax = accuracy_against_flops(catalog(tmp_path))
    ax.figure.canvas.draw()
    assert ax.get_window_extent().width / ax.figure.dpi > 4.5


def test_densities_of_a_method_are_joined_in_order_of_flops(tmp_path, add_run):
    for density, accuracy in ((0.2, 0.9), (0.05, 0.7), (0.1, 0.8)):
        add_run(tmp_path, "g", "set", 0, accuracy, density=density)
    ((points, _),) = drawn(accuracy_against_flops(catalog(tmp_path))).values()
    assert points == [[0.14, 70.0], [0.24, 80.0], [0.44, 90.0]]


@pytest.mark.parametrize(("density", "scale"), [(0.1, "linear"), (0.02, "log")])
def test_the_axis_is_logarithmic_beyond_a_decade(tmp_path, add_run, density, scale):
    add_run(tmp_path, "g", "dense", 0, 0.9, density=None)
    add_run(tmp_path, "g", "set", 0, 0.8, density=density)
    assert accuracy_against_flops(catalog(tmp_path)).get_xscale() == scale


def test_settings_other_than_density_are_not_joined(tmp_path, add_run):
    add_run(tmp_path, "g", "dense", 0, 0.9, density=None)
    for multiplier in (1, 5):
        for density in (0.1, 0.2):
            add_run(tmp_path, "g", "set", 0, 0.8, density=density, **{"schedule.multiplier": multiplier})
    ax = accuracy_against_flops(catalog(tmp_path))
    assert {label: len(points) for label, (points, _) in drawn(ax).items()} == {
        "dense": 1,
        "set, schedule.multiplier=1": 2,
        "set, schedule.multiplier=5": 2,
    }
    _, once, longer = (container.lines[0] for container in ax.containers)
    assert (once.get_color(), once.get_marker()) == (longer.get_color(), longer.get_marker())
    assert once.get_linestyle() != longer.get_linestyle()
    assert once.get_fillstyle() != longer.get_fillstyle()


@pytest.mark.parametrize("density", [0.2, 0.02, 0.001, 0.00001])
def test_tick_labels_do_not_overlap(tmp_path, add_run, density):
    add_run(tmp_path, "g", "dense", 0, 0.9, density=None)
    folder = add_run(tmp_path, "g", "set", 0, 0.8, density=density)
    with Record.open(folder) as record:
        record.write_summary({"test/accuracy": 0.8, "flops/train_ratio": density})
    ax = accuracy_against_flops(catalog(tmp_path))
    ax.figure.canvas.draw()
    labels = [
        tick.label1 for tick in ax.xaxis.get_major_ticks() if ax.get_xlim()[0] <= tick.get_loc() <= ax.get_xlim()[1]
    ]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) > 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_several_data_sets_are_told_apart_in_the_legend(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.9)
    add_run(tmp_path, "g", "set", 0, 0.8, **{"data.name": "mnist"})
    assert set(drawn(accuracy_against_flops(catalog(tmp_path)))) == {"set (digits, mlp)", "set (mnist, mlp)"}


def test_axes_of_the_caller_are_drawn_on(tree):
    ax = plt.figure().add_subplot()
    assert accuracy_against_flops(catalog(tree), ax=ax) is ax
    assert len(ax.containers) == 3


def test_the_history_has_a_line_for_each_run_and_a_legend_entry_for_each_method(tree):
    ax = history(catalog(tree), "sparsity/rs", label="Rs")
    assert len(ax.lines) == 8
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["dense", "rigl", "set"]
    assert ax.lines[-1].get_xydata().tolist() == [[0, 0.1], [50, 0.4], [100, 0.5]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "Rs")


def test_runs_without_the_value_are_left_out_of_the_history(tree):
    ax = history(catalog(tree), "sparsity/nothing")
    assert (len(ax.lines), ax.get_legend()) == (0, None)


def test_no_runs_make_empty_axes(tmp_path):
    assert accuracy_against_flops(catalog(tmp_path)).get_legend() is None
    assert history(catalog(tmp_path), "sparsity/rs").get_legend() is None
