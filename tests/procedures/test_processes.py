"""Two processes superpose the same networks, with the same statistics, and prune the same weights."""

import pytest
import torch
from torch.optim.swa_utils import update_bn

from dst.data.shard import Shard
from dst.run.build import build
from dst.training.batch_norm import batch_norms
from tests.chaos.test_distributed import codes
from tests.chaos.test_resume import CYCLES, assert_same
from tests.procedures import ranks
from tests.procedures.test_imp import COUNTS, EPOCH
from tests.procedures.test_imp import SHORT as LEVELS
from tests.procedures.test_sup_tickets import NAMES, SHORT, WITH_BATCH_NORM, composed
from tests.processes import call_together, run_folder, run_together, traces
from tests.states import same

OPTIONS = ("sparsity=rigl_itop", WITH_BATCH_NORM, "procedure.re_explore=0.5", "procedure.pool=layer")
TOGETHER = "hardware.processes=2"


def test_two_processes_agree(tmp_path):
    """On weights, masks and statistics, which are means over both shares; FLOPs are of all samples."""
    one, two = call_together(ranks.train, *SHORT, *OPTIONS, TOGETHER, cwd=tmp_path)
    assert list(one["networks"]) == NAMES
    assert same(one, two)
    assert same(one["final"], one["networks"]["superposed 2"]["model"])
    assert one["flops"] == ranks.train(*SHORT, *OPTIONS)["flops"]

    training = build(composed(*OPTIONS)).training
    model, found = training.model, []
    for rank in range(2):
        model.load_state_dict(one["networks"]["superposed 2"]["model"])
        update_bn(training.train_batches.epoch(3, shard=Shard(rank, 2)), model)
        found.append([[module.running_mean.clone(), module.running_var.clone()] for module in batch_norms(model)])
    model.load_state_dict(one["networks"]["superposed 2"]["model"])
    for module, first, second in zip(batch_norms(model), *found, strict=True):
        assert torch.equal(module.running_mean, first[0] / 2 + second[0] / 2)
        assert torch.equal(module.running_var, first[1] / 2 + second[1] / 2)
    assert not torch.equal(found[0][0][0], found[1][0][0])


@pytest.mark.slow
def test_what_ends_one_of_two_inside_superposing_leaves_no_trace(tmp_path):
    cache = f"data.cache={tmp_path / 'cache'}"
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "disturbed").mkdir()
    options = (*CYCLES, TOGETHER, cache)
    assert codes(run_together(*options, cwd=tmp_path / "undisturbed")) == [0, 0]
    folder = tmp_path / "disturbed"
    assert codes(run_together(*options, cwd=folder, faults=("", "kill:batch_norm:3"))) == [1, -9]
    assert codes(run_together(*options, cwd=folder, faults=("", "signal:SIGTERM:batch_norm:3"))) == [75, 75]
    assert codes(run_together(*options, cwd=folder, faults=("kill:adopt:1", ""))) == [-9, 1]
    assert codes(run_together(*options, cwd=folder)) == [0, 0]
    assert_same(folder, traces(run_folder(tmp_path / "undisturbed" / "outputs")))


@pytest.mark.parametrize("criterion", ["magnitude", "snip"])
def test_two_processes_prune_alike(criterion, tmp_path):
    """Also by gradients, which both take of the same whole batch."""
    options = (*LEVELS, "sparsity=static", *EPOCH, f"procedure.criterion={criterion}")
    one, two = call_together(ranks.train, *options, TOGETHER, cwd=tmp_path)
    assert list(one["networks"]) == ["level 1", "level 2", "level 3"]
    assert same(one, two)
    alone = ranks.train(*options)
    for run in (one, alone):
        counts = [sum(int(mask.sum()) for mask in network["masks"].values()) for network in run["networks"].values()]
        assert counts == COUNTS[:3]
