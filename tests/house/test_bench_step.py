"""The longest benchmark says how long it takes, where it is, and measures a part on request."""

import pytest
import torch

from tests.bench import step


@pytest.fixture
def measured(monkeypatch):
    """Return the parts that are measured, in order, which takes no time."""
    found = []
    monkeypatch.setattr(step, "PARTS", {name: lambda *_, name=name: found.append(name) for name in step.PARTS})
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return found


def test_it_says_how_long_it_takes_and_where_it_is(measured, capsys):
    step.main([])
    assert measured == ["steps", "optimizer", "updates", "methods", "resnet50"]
    said = capsys.readouterr()
    assert "all parts take six minutes or more" in said.out
    assert said.err.splitlines()[3] == "[4/5] measuring methods ..."


def test_a_part_of_it_and_no_unknown_one(measured, capsys):
    step.main(["--only", "updates", "steps"])
    assert measured == ["steps", "updates"]
    assert "six minutes" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        step.main(["--only", "all"])
