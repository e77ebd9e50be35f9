import time

import pytest

from dst import cli
from dst.launcher import sweep
from dst.tracking import pulse
from dst.tracking.progress import progress
from dst.tracking.pulse import starting
from tests.processes import REPOSITORY


@pytest.fixture
def hasty(monkeypatch):
    """Say that no more than this many seconds are silent."""
    monkeypatch.setattr(pulse, "SILENCE_S", 0.1)


def test_plain_lines_come_first_and_at_every_tenth_with_eta(capsys):
    display = progress("plain", total=200, start=0)
    for step in range(10, 201, 10):
        display.advance(step)
        display.show({"accuracy": f"{step / 200:.2f}"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/200" for step in (10, *range(20, 201, 20))]
    assert lines[1].startswith("  step 20/200  ETA 00:00  accuracy 0.10")


def test_bar_shows_figures(capsys):
    display = progress("bar", total=100, start=50)
    display.show({"Rs": "0.5"})
    display.advance(100)
    display.close()
    error = capsys.readouterr().err
    assert "100/100" in error
    assert "Rs=0.5" in error


def test_a_bar_goes_on_and_has_no_negative_times_when_the_clock_is_set_back(capsys, monkeypatch):
    now, steady = time.time(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: steady[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now if steady == [100.0] else now - 7200)
    display = progress("bar", total=100, start=0)
    steady[0] += 10
    display.advance(10)
    bar = display._bar.format_dict
    assert bar["elapsed"] == 10
    assert "10/100 [00:10<01:30" in capsys.readouterr().err
    display.close()


def test_none_is_silent_and_auto_is_plain_without_a_terminal(capsys):
    display = progress("none", total=10, start=0)
    display.advance(10)
    display.show({"a": "b"})
    display.close()
    assert capsys.readouterr() == ("", "")
    assert type(progress("auto", total=10, start=0)).__name__ == "Lines"


def test_the_first_figures_are_shown_at_once_and_no_silence_lasts(hasty, capsys):
    """A first tenth may take hours, and a step or an evaluation too."""
    display = progress("plain", total=1000, start=0)
    display.advance(1)
    display.show({"accuracy": "0.10"})
    display.advance(7)
    (line,) = capsys.readouterr().out.splitlines()
    assert (line[:13], line[-15:]) == ("  step 1/1000", "  accuracy 0.10")
    time.sleep(0.25)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("  step 7/1000  ETA ")
    assert first.endswith("  accuracy 0.10")
    display.close()
    time.sleep(0.2)
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


def test_what_a_command_does_before_it_trains_is_told_at_once_and_again(hasty, capsys):
    starting("loading torch")
    assert capsys.readouterr() == ("", "loading torch ...\n")
    time.sleep(0.25)
    assert capsys.readouterr().err.startswith("still loading torch (0 min)\n")
    starting("building", at_once=False)
    assert "building" not in capsys.readouterr().err
    time.sleep(0.25)
    assert capsys.readouterr().err.startswith("still building (0 min)\n")
    starting("preparing data", "none")
    time.sleep(0.2)
    assert capsys.readouterr() == ("", "")
    starting(None)


def test_of_a_start_that_was_interrupted_nothing_more_is_told(monkeypatch):
    """In an interactive session the process goes on, and would tell it for ever."""

    def interrupted(*_, **__):
        starting("preparing data", at_once=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_cells", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.main([], conf=REPOSITORY / "conf")
    assert pulse._starting is None
