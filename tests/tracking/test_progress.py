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


def test_none_is_silent_and_auto_is_plain_without_a_terminal(capsys):
    display = progress("none", total=10, start=0)
    display.advance(10)
    display.show({"a": "b"})
    display.close()
    assert capsys.readouterr() == ("", "")
    assert type(progress("auto", total=10, start=0)).__name__ == "Lines"
