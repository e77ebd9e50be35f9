"""The Python of the pages runs, page by page, and does what is said of it."""

import re

import pytest
import torch

from tests.docs.pages import PAGES, name, snippets
from tests.processes import run

EXTENDING = "docs/extending.md"  # whose functions belong into files: tests/docs/test_extending.py puts them there
OWN_LOOP = "docs/python.md"


def snippet(text):
    """Return the only snippet of the page on Python that has a text."""
    (found,) = [content for content in snippets(OWN_LOOP) if text in content]
    return found


def test_the_core_trains_in_a_strangers_loop(capsys):
    names = {}
    exec(snippet("for _ in range(500)"), names)
    assert re.fullmatch(r"density 0\.200, Rs 0\.[2-9]\d\d\n", capsys.readouterr().out)
    assert names["sparsifier"].updates == 9
    assert {"masks", "explored"} <= set(names["checkpoint"]["sparsifier"])
    exec(snippet("soft_threshold"), names)
    for _ in range(50):
        exec("optimizer.zero_grad()\nnn.functional.cross_entropy(model(inputs), labels).backward()", names)
        names["sparsifier"].step()
    names["sparsifier"].count()
    names["sparsifier"].release()
    weights = [layer.weight for layer in names["model"] if hasattr(layer, "weight")]
    assert sum(int(weight.count_nonzero()) for weight in weights) == names["sparsifier"].topology.active < 0.5 * 1408


def test_the_example_with_a_grad_scaler_survives_an_overflow_at_an_update():
    """The scale is such that the gradients of step 50, which has an update, overflow, and those of some steps after."""
    first, scaled = snippet("for _ in range(500)"), snippet("GradScaler(")
    names = {}
    exec(first[: first.index("for _ in range")] + scaled, names)
    torch, sparsifier, scaler = (names[name] for name in ("torch", "sparsifier", "scaler"))
    torch.manual_seed(0)
    updates, left_out = [], []
    for step in range(1, 121):
        inputs = torch.randn(64, 20)
        if step == 50:
            scaler.update(2.0**24)
        before = scaler.get_scale()
        if names["train_step"](inputs, (inputs[:, 0] > 0).long()):
            updates.append(step)
        if scaler.get_scale() < before:
            left_out.append(step)
    assert 50 in left_out
    assert 51 in left_out
    assert updates == [min(set(range(due, 121)) - set(left_out)) for due in (50, 100)]
    assert sparsifier.density == pytest.approx(0.2, abs=1e-3)
    sparsifier.verify()
    state = names["optimizer"].state
    assert all(torch.isfinite(p).all() and torch.isfinite(state[p]["momentum_buffer"]).all() for p in state)


@pytest.fixture(scope="module")
def with_runs(tmp_path_factory):
    """A folder with a run, as pages presuppose one."""
    folder = tmp_path_factory.mktemp("snippets")
    result = run("schedule.epochs=1", "sparsity=static", "sparsity.scope.dense_last=true", cwd=folder)
    assert result.code == 0
    assert re.search(r"^ +outside the scope: fc3\.weight +2,560 +dense +$", result.output, flags=re.MULTILINE)
    return folder


def test_the_catalog_example_shows_runs(with_runs, monkeypatch):
    monkeypatch.chdir(with_runs)
    names = {}
    exec(snippet("catalog("), names)
    assert len(names["runs"]) == 1


@pytest.mark.parametrize("page", [name(page) for page in PAGES if name(page) != EXTENDING and snippets(name(page))])
def test_all_snippets_of_a_page_run_one_after_another(page, with_runs, monkeypatch):
    monkeypatch.chdir(with_runs)
    names = {"__name__": "__main__"}
    for content in snippets(page):
        exec(compile(content, page, "exec"), names)
    torch.set_grad_enabled(True)
