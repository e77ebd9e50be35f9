import pytest

from analysis.runs import NoRunsError, load
from analysis.selection import SelectionError


@pytest.mark.parametrize(
    ("where", "runs"),
    [
        (["density=0.10"], 6),
        (["density=1e-1"], 6),
        (["density=null"], 2),
        (["sparsity.density=none"], 2),
        (["method=set"], 3),
        (["method=set", "method=rigl"], 6),
        (["method=set", "seed=1"], 1),
        (["model.hidden=[64,64]"], 8),
        (["schedule.optimizer.nesterov=True"], 8),
        (["state=failed"], 1),
        (["test/accuracy=0.9"], 1),
        ([" density = 0.1 "], 6),
    ],
)
def test_values_are_compared_by_type(tree, where, runs):
    assert len(load([tree], where)) == runs


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("densty=0.1", "no run has a key 'densty': did you mean 'density'?"),
        ("multiplier=1", "did you mean 'schedule.multiplier'?"),
        ("density=0.2", "no run has density=0.2: there are 0.1, null"),
        ("density=a", "no run has density=a: there are 0.1, null"),
        ("schedule.optimizer.nesterov=1", "there are true"),
        ("density", "'density' is no condition: give it as key=value"),
        ("identity=x", "no run has a key 'identity'"),
    ],
)
def test_a_condition_that_no_run_can_meet_is_an_error(tree, condition, told):
    with pytest.raises(SelectionError) as error:
        load([tree], [condition])
    assert told in str(error.value)


def test_several_folders_are_one_catalog_and_a_run_in_both_counts_once(tree, tmp_path, add_run):
    add_run(tmp_path / "more", "sweep", "set", 9, 0.9)
    add_run(tmp_path / "more", "sweep", "set", 0, 0.9)
    assert len(load([tree, tmp_path / "more"])) == 9
    with pytest.raises(NoRunsError, match="nowhere is no folder"):
        load([tree, tmp_path / "nowhere"])
