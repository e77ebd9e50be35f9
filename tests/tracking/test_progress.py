import time

from dst.tracking.progress import progress


def test_plain_lines_come_at_every_tenth_with_eta(capsys):
    display = progress("plain", total=200, start=0)
    for step in range(10, 201, 10):
        display.advance(step)
        display.show({"accuracy": f"{step / 200:.2f}"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("  step 20/200  ETA 00:00  accuracy 0.10")


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
