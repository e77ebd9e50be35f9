"""What figures show: read from what was drawn, on runs whose numbers are computed by hand (see ``tree``)."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection

from analysis.figures import FIGURES, THEMES, VENUES, svg, write
from analysis.figures.__main__ import main
from analysis.figures.dodge import slots
from analysis.figures.series import series_of, short
from analysis.names import COLOURS, NAMES, look
from dst.records.catalog import catalog
from dst.records.store import Record
from tests.analysis.drawn import legend, points

REPOSITORY = Path(__file__).parents[2]


def log(folder, *, accuracy=(), layers=(), networks=()):
    """Add to a record: validation accuracies by step, counts of layers, and networks on the way."""
    with Record.open(folder) as record:
        for step, value in accuracy:
            record.log(step=step, epoch=1.0, attempt=1, values={"val/accuracy": value})
        for step, name, active, dropped, grown in layers:
            counts = {"layer": name, "size": 100, "active": active, "explored": active}
            record.log_layers(step=step, attempt=1, rows=[{**counts, "dropped": dropped, "grown": grown}])
        for step, name, value, density in networks:
            where = {"phase": 0, "phase_name": "levels", "step": step, "name": name}
            record.log_network(attempt=1, **where, density=density, active=1, loss=0.1, accuracy=value)


@pytest.fixture
def rich(tree, add_run):
    """The tree, with all that any figure needs, and rigl trained five times as long."""
    for method in ("set", "rigl"):
        for seed in (0, 1):
            folder = tree / "sweep" / f"{method}-0.1-{seed}"
            up = seed / 50
            log(
                folder, accuracy=[(0, 0.1), (50, 0.8 + up), (100, 0.9 + up)],
                layers=[(0, "fc1", 20, 0, 0), (50, "fc1", 20, 10, 10), (100, "fc1", 20, 6, 6), (0, "fc2", 50, 0, 0)],
                networks=[(50, "level 1", 0.8 + up, 0.5), (100, "level 2", 0.7 + up, 0.1)],
            )  # fmt: skip
    add_run(tree, "sweep", "rigl", 0, 0.99, **{"schedule.multiplier": 5})
    return tree


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_points_are_means_and_bars_are_one_deviation_up_and_down(tree):
    (ax,) = FIGURES["accuracy_flops"](catalog(tree)).axes
    assert points(ax) == [
        (look("dense").colour, [[1.0, 98.0]], [0.0]),
        (look("rigl").colour, [[0.24, 96.0]], [2.8284]),
        (look("set").colour, [[0.24, 92.0]], [4.0]),
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training FLOPs (ratio to dense training)", "test accuracy (%)")
    assert ax.get_title() == "digits, mlp"


def test_densities_of_a_method_are_a_line_in_order_with_a_band_and_dense_is_a_level(tmp_path, add_run):
    for density, accuracy in ((0.2, 0.9), (0.05, 0.7), (0.1, 0.8)):
        for seed in (0, 1):
            add_run(tmp_path, "g", "set", seed, accuracy + seed / 50, density=density)
    add_run(tmp_path, "g", "dense", 0, 0.95, density=None)
    (ax,) = FIGURES["accuracy_density"](catalog(tmp_path)).axes
    level, line, *_ = ax.lines
    assert set(level.get_ydata()) == {95.0}
    np.testing.assert_allclose(line.get_xydata(), [[0.05, 71], [0.1, 81], [0.2, 91]])
    (band,) = (found for found in ax.collections if isinstance(found, PolyCollection))
    edge = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose((edge.min(), edge.max()), (71 - 2**0.5, 91 + 2**0.5))
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.2", "0.1", "0.05"]


def test_learning_curves_are_means_over_seeds_with_a_band(rich):
    (ax,) = FIGURES["curves"](catalog(rich)).axes
    assert {line.get_color(): line.get_xydata().round(6).tolist() for line in ax.lines} == {
        look(method).colour: [[0, 10], [50, 81], [100, 91]] for method in ("rigl", "set")
    }
    assert len(ax.collections) == 2
    assert ax.get_ylim()[0] > 70  # the first value, 10 %, does not decide where the axis begins


def test_rs_goes_up_in_stairs(rich):
    (ax,) = FIGURES["rs"](catalog(rich)).axes
    assert {line.get_drawstyle() for line in ax.lines} == {"steps-post"}
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), [[0, 0.1], [50, 0.4], [100, 0.5]])
    assert look("dense").colour in {line.get_color() for line in ax.lines}  # its Rs in this tree is not always 1


def test_layers_show_their_density_at_the_end_and_what_moved_in_all_of_training(rich):
    (ax,) = FIGURES["layer_density"](catalog(rich)).axes
    assert [[y for _, y in found] for _, found, _ in points(ax)] == [[0.2, 0.5]] * 2
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["fc1", "fc2"]
    (ax,) = FIGURES["layer_exchange"](catalog(rich)).axes
    assert [[y for _, y in found] for _, found, _ in points(ax)] == [[0.8, 0.0]] * 2  # 16 of 20 weights, 0 of 50
    assert ax.get_title().startswith("dropped and grown")


def test_where_other_weights_grow_than_are_dropped_each_has_a_panel(rich):
    log(rich / "sweep" / "set-0.1-0", layers=[(150, "fc2", 60, 0, 12)])
    grown, dropped = FIGURES["layer_exchange"](catalog(rich)).axes
    assert (grown.get_title()[:5], dropped.get_title()[:7]) == ("grown", "dropped")
    assert [found[1][1] for _, found, _ in points(grown)] == [0.0, 0.1]
    assert [found[1][1] for _, found, _ in points(dropped)] == [0.0, 0.0]


def test_longer_training_is_a_line_over_its_length(rich):
    (ax,) = FIGURES["extended_training"](catalog(rich)).axes
    assert [found for _, found, _ in points(ax)] == [[[1, 96.0], [5, 99.0]]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1x", "5x"]


def test_networks_on_the_way_are_shown_over_steps_and_over_density(rich):
    steps, densities = FIGURES["networks"](catalog(rich)).axes
    assert [found for _, found, _ in points(steps)] == [[[50, 81], [100, 71]]] * 2
    assert [found for _, found, _ in points(densities)] == [[[0.5, 81], [0.1, 71]]] * 2
    assert legend(steps.figure)[-1] == "level"


def test_a_run_whose_file_is_damaged_is_left_out_with_a_note(rich):
    path = rich / "sweep" / "set-0.1-0" / "metrics.jsonl"
    path.write_text('{"step": "x"}\n')
    figure = FIGURES["curves"](catalog(rich))
    assert [note.partition(" must be ")[0] for note in figure.left_out] == [f"left out: {path}: step"]
    (ax,) = figure.axes
    assert {line.get_color(): line.get_ydata()[-1].round(6) for line in ax.lines} == {
        look("rigl").colour: 91,
        look("set").colour: 92,
    }


# -- one look a method -------------------------------------------------------------------------------------------------


def colours(figure):
    """Return the colour of each name in the legend, checked against what was drawn."""
    handles = figure.legends[0].legend_handles
    drawn = {line.get_color() for ax in figure.axes for line in ax.lines}
    named = {text: handle.get_color() for text, handle in zip(legend(figure), handles, strict=True)}
    methods = {text: colour for text, colour in named.items() if text in NAMES.values()}
    assert set(methods.values()) == drawn
    return methods


@pytest.mark.parametrize("theme", THEMES)
def test_a_method_has_its_colour_in_every_figure_whatever_else_is_in_it(rich, theme):
    runs = catalog(rich)
    for kept in (["dense", "rigl", "set"], ["rigl", "set"], ["rigl"], ["set"], ["dense", "set"]):
        part = runs[runs["method"].isin(kept)]
        figures = [figure for drawing in FIGURES.values() if (figure := drawing(part, theme=theme)) is not None]
        assert len(figures) >= 3
        for figure in figures:
            for name, colour in colours(figure).items():
                (method,) = (label for label, known in NAMES.items() if known == name)
                assert colour == look(method, theme).colour


@given(st.lists(st.sampled_from([*NAMES, "mine", "rigl grow=random"]), min_size=1, unique=True))
def test_the_look_of_a_method_depends_on_nothing_else(methods):
    assert [look(method) for method in methods] == [look(method) for method in reversed(methods)][::-1]


def test_all_methods_have_colour_and_marker_of_their_own_and_names_are_all_different():
    looks = [look(method) for method in NAMES]
    assert len({(found.colour, found.marker) for found in looks}) == len({found.name for found in looks}) == len(NAMES)


@pytest.mark.parametrize("theme", THEMES)
def test_colours_stand_out_from_the_background(theme):
    background = luminance(THEMES[theme].background)
    for colour in (*COLOURS[theme], THEMES[theme].ink):
        light, dark = sorted((luminance(colour), background), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def luminance(colour):
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_two_names_of_one_composition_have_the_look_of_the_first_known_one():
    assert look("dst, rigl_itop").colour == look("rigl_itop").colour
    assert look("dst, rigl_itop").name == "RigL-ITOP, DST"


def test_densities_of_a_method_share_its_colour_and_differ_in_line_and_strength(tmp_path, add_run):
    for density in (0.1, 0.2):
        log(add_run(tmp_path, "g", "set", 0, 0.9, density=density), accuracy=[(0, 0.5), (9, 0.9)])
    (ax,) = (figure := FIGURES["curves"](catalog(tmp_path))).axes
    assert {line.get_color() for line in ax.lines} == {look("set").colour}
    assert len({(line.get_linestyle(), line.get_alpha()) for line in ax.lines}) == 2
    assert legend(figure) == ["SET", "density=0.2", "density=0.1"]


def test_what_all_lines_share_is_said_in_the_title_and_the_rest_in_the_legend(tmp_path, add_run):
    for multiplier in (1, 5):
        folder = add_run(tmp_path, "g", "set", 0, 0.8, **{"schedule.multiplier": multiplier})
        log(folder, accuracy=[(0, 0.5), (9, 0.9)])
    figure = FIGURES["curves"](catalog(tmp_path))
    assert figure.axes[0].get_title() == "digits, mlp, density=0.1"
    assert legend(figure) == ["SET", "multiplier=1", "multiplier=5"]


def test_what_was_changed_in_a_method_keeps_its_colour_and_has_a_line_of_its_own(tmp_path, add_run):
    add_run(tmp_path, "g", "one", 0, 0.8, label="rigl", changed={"sparsity.grow.name": "random"})
    add_run(tmp_path, "g", "rigl", 0, 0.9)
    figure = FIGURES["accuracy_flops"](catalog(tmp_path))
    assert legend(figure)[:2] == ["RigL", "default"]
    assert "grow=random" in legend(figure)[2]
    assert {colour for colour, _, _ in points(figure.axes[0])} == {look("rigl").colour}


def test_eighteen_curves_are_six_lines_and_many_densities_have_panels_of_their_own(tmp_path, add_run):
    for method in ("set", "rigl", "static"):
        for density in (0.1, 0.2, 0.4):
            for seed in (0, 1):
                log(
                    add_run(tmp_path, "g", method, seed, 0.9, density=density),
                    accuracy=[(0, 0.5), (9, 0.9 + seed / 100)],
                )
    axes = FIGURES["curves"](catalog(tmp_path)).axes
    assert [len(ax.lines) for ax in axes] == [3, 3, 3]
    assert [ax.get_title().split("density=")[1] for ax in axes] == ["0.1", "0.2", "0.4"]
    runs = catalog(tmp_path)
    (ax,) = FIGURES["curves"](runs[runs["config.sparsity.density"] < 0.4]).axes
    assert len(ax.lines) == 6


# -- the sheet ---------------------------------------------------------------------------------------------------------


def test_each_data_set_and_model_has_a_panel(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.9)
    add_run(tmp_path, "g", "set", 0, 0.8, **{"data.name": "mnist"})
    add_run(tmp_path, "g", "set", 0, 0.8, **{"model.name": "lenet_5"})
    axes = FIGURES["accuracy_flops"](catalog(tmp_path)).axes
    assert [ax.get_title().replace("\n", " ") for ax in axes] == [*("digits, lenet_5", "digits, mlp", "mnist, mlp")]


def test_points_that_coincide_lie_beside_each_other_on_the_page_and_keep_their_values(tmp_path, add_run):
    for method in ("set", "rigl", "static"):
        add_run(tmp_path, "g", method, 0, 0.9)
    figure = FIGURES["accuracy_flops"](catalog(tmp_path))
    figure.canvas.draw()
    (ax,) = figure.axes
    lines = [container.lines[0] for container in ax.containers]
    assert {tuple(line.get_xydata()[0].round(6)) for line in lines} == {(0.24, 90.0)}
    places = sorted(line.get_transform().transform(line.get_xydata())[0][0] for line in lines)
    assert all(right - left > 3 * figure.dpi / 72 for left, right in pairwise(places))


values = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 1.0]), st.sampled_from([0.0, 50.0, 100.0])), min_size=1, max_size=3
)


@settings(max_examples=50)
@given(st.lists(values, min_size=1, max_size=5))
def test_no_two_lines_at_one_place_are_moved_alike(lines):
    import pandas as pd

    tables = [pd.DataFrame(line, columns=["x", "mean"]).assign(std=np.nan) for line in lines]
    moved = slots(tables)
    for one in range(len(lines)):
        for other in range(one):
            assert moved[one] != moved[other] or not set(lines[one]) & set(lines[other])


@pytest.mark.parametrize("density", [0.2, 0.02, 0.001, 0.00001])
def test_tick_labels_do_not_overlap(tmp_path, add_run, density):
    add_run(tmp_path, "g", "dense", 0, 0.9, density=None)
    for factor in (1, 1.5, 2, 4):
        folder = add_run(tmp_path, "g", "set", 0, 0.8, density=density * factor)
        with Record.open(folder) as record:
            record.write_summary(
                {"test/accuracy": 0.8, "flops/train_ratio": density * factor, "sparsity/density": density * factor}
            )
    for name in ("accuracy_flops", "accuracy_density"):
        figure = FIGURES[name](catalog(tmp_path))
        figure.canvas.draw()
        (ax,) = figure.axes
        low, high = ax.get_xlim()
        labels = [tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert len(boxes) > 1
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), name


def test_the_legend_lies_below_the_panels_and_within_the_figure(rich):
    for venue in (None, "icml", "neurips"):
        for drawing in FIGURES.values():
            figure = drawing(catalog(rich), venue=venue)
            figure.canvas.draw()
            box = figure.legends[0].get_window_extent()
            assert box.y1 <= min(ax.get_window_extent().y0 for ax in figure.axes), drawing.name
            assert (box.x0, box.y0) >= (0, 0), drawing.name
            assert box.x1 <= figure.bbox.x1 + 1, drawing.name


@pytest.mark.parametrize("venue", VENUES)
def test_a_venue_gives_the_width_of_its_column_and_needs_no_latex(rich, venue):
    figure = FIGURES["accuracy_flops"](catalog(rich), venue=venue)
    assert figure.get_figwidth() == pytest.approx(VENUES[venue]()["figure.figsize"][0])
    assert figure.rc["text.usetex"] is False
    assert min(label.get_fontsize() for label in figure.axes[0].get_xticklabels()) >= 6


# -- files -------------------------------------------------------------------------------------------------------------


def test_an_svg_stands_in_a_page_by_itself_and_is_the_same_twice(rich):
    elements = [svg(FIGURES["curves"](catalog(rich), theme="dark")) for _ in range(2)]
    assert elements[0] == elements[1]
    element = elements[0]
    assert element.startswith("<svg")
    assert element.rstrip().endswith("</svg>")
    for absent in ("<?xml", "<!DOCTYPE", "<metadata", "<script", "<image", "@import", "http-equiv"):
        assert absent not in element
    assert len(element) < 60_000
    assert "validation accuracy (%)" in element  # text is text


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "$\\frac{x$", "_hidden", "a\x07b & c", "名前"])
def test_whatever_a_method_is_called_its_figure_can_be_read(tmp_path, add_run, label):
    add_run(tmp_path, "g", "one", 0, 0.9, label=label, **{"model.name": label})
    figure = FIGURES["accuracy_flops"](catalog(tmp_path))
    (named,) = legend(figure)
    assert label.replace("\x07", "\\x07") in named
    element = svg(figure)
    assert "<script" not in element
    ElementTree.fromstring(element)


def test_figures_in_one_page_share_no_name(rich):
    import re

    names = [
        set(re.findall(r' id="([^"]+)"', svg(drawing(catalog(rich), theme=theme))))
        for drawing in FIGURES.values()
        for theme in THEMES
    ]
    assert all(names)
    assert len(set().union(*names)) == sum(map(len, names))


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_a_file_is_the_same_bytes_twice(rich, tmp_path, form):
    for name in ("one", "two"):
        write(FIGURES["accuracy_density"](catalog(rich)), tmp_path / f"{name}.{form}")
    assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_the_order_of_the_runs_and_settings_of_the_user_do_not_matter(rich):
    import matplotlib as mpl

    frame = catalog(rich)
    usual = svg(FIGURES["accuracy_density"](frame))
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}):
        assert svg(FIGURES["accuracy_density"](frame.sample(frac=1, random_state=1))) == usual


def command(*words):
    return main([str(word) for word in words])


def test_the_command_writes_every_figure_that_the_runs_have(rich, tmp_path, capsys):
    assert command(rich, "--out", tmp_path / "new" / "folder", "--format", "svg", "--venue", "neurips") == 0
    assert sorted(path.stem for path in (tmp_path / "new" / "folder").iterdir()) == sorted(FIGURES)
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/new/folder/{name}.svg" for name in FIGURES]


def test_only_the_runs_that_are_asked_for_are_drawn(tree, tmp_path, capsys):
    assert command(tree, "--out", tmp_path, "--only", "accuracy_flops", "--format", "svg", "--where", "method=set") == 0
    written = (tmp_path / "accuracy_flops.svg").read_text()
    assert look("set").colour.lower() in written
    assert look("rigl").colour.lower() not in written
    assert command(tree, "--out", tmp_path, "--where", "metod=set") == 2
    assert "metod" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_said(tree, tmp_path, capsys):
    assert command(tree, "--out", tmp_path, "--only", "networks", "accuracy_flops") == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/accuracy_flops.pdf\n"
    assert said.err == f"networks: not drawn, it needs {FIGURES['networks'].needs}\n"
    assert command(tree, "--out", tmp_path, "--only", "networks") == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{tmp}/empty", "--out", "{tmp}/o"], "{tmp}/empty holds no run"),
        (["{tmp}/nowhere", "--out", "{tmp}/o"], "{tmp}/nowhere is no folder"),
        (["{tree}", "{tmp}/empty", "--out", "{tmp}/o"], "{tmp}/empty holds no run"),
        (["{tree}", "--out", "{tmp}/file"], "--out {tmp}/file: cannot write there"),
        (["{tree}", "--out", "{tmp}/file/below"], "--out {tmp}/file/below: cannot write there"),
    ],
)
def test_folders_that_cannot_be_used_are_an_error(tree, tmp_path, capsys, words, told):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"tmp": tmp_path, "tree": tree}
    assert command(*(word.format(**places) for word in words)) == 2
    assert capsys.readouterr().err.startswith(told.format(**places))


@pytest.mark.parametrize(
    "words", [["--only", "acuracy"], ["--venue", "nips"], ["--theme", "blue"], ["--format", "gif"]]
)
def test_an_unknown_name_is_an_error_that_lists_what_there_is(tree, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as error:
        command(tree, "--out", tmp_path, *words)
    assert error.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_one_seed_of_one_experiment_twice_is_an_error(tree, tmp_path, capsys, add_run):
    folder = add_run(tree, "again", "set", 0, 0.5)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"id": "another"}))
    assert command(tree, "--out", tmp_path / "o") == 2
    assert "one seed of one experiment twice" in capsys.readouterr().err


def test_figures_import_neither_torch_nor_hydra_nor_pyplot():
    code = "import sys, analysis.notebook; print({'torch', 'hydra', 'matplotlib.pyplot'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


# -- lines -------------------------------------------------------------------------------------------------------------


def test_settings_other_than_density_are_lines_of_their_own(tmp_path, add_run):
    for multiplier in (1, 5):
        for density in (0.1, 0.2):
            add_run(tmp_path, "g", "set", 0, 0.8, density=density, **{"schedule.multiplier": multiplier})
    lines = series_of(catalog(tmp_path), along=("density",))
    assert [(line.words, len(line.runs)) for line in lines] == [("multiplier=1", 2), ("multiplier=5", 2)]


def test_procedures_that_end_at_several_densities_are_one_line(tmp_path, add_run):
    for density in (0.1, 0.2):
        about = {"procedure.name": "imp", "procedure.density": density, "procedure.rewind": "init"}
        add_run(tmp_path, "g", "er", 0, 0.8, density=0.5, **about)
    (line,) = series_of(catalog(tmp_path), along=("density",))
    assert line.words == "imp(rewind=init)"
    assert len(series_of(catalog(tmp_path))) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [("schedule.multiplier", "multiplier"), ("sparsity.grow.name", "grow"), ("seed", "seed")],
)
def test_settings_have_short_names(name, shown):
    assert short(name) == shown
