"""Several processes train as one does; they stay alike at every update, and end alike whatever happens to one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dst.config.checks import check
from dst.config.schema import Config, ConfigError, Data, Hardware, Model, Schedule, complete
from dst.run import build, feasible
from dst.run.processes import check_start
from dst.training import distributed
from dst.training.distributed import StartError, checksum
from dst.training.rank import Rank, own_rank
from tests.processes import call_together
from tests.training import ranks

UPDATES = 5
STEPS = 12


@pytest.mark.parametrize(
    ("world", "strict", "options"),
    [
        (2, True, {}),
        (2, False, {"accumulate": 3}),
        (3, True, {"momentum_growth": True, "accumulate": 2}),  # shares of 17, 17 and 16 samples
        (3, False, {}),
        (2, True, {"correction": {}}),
        (2, False, {"correction": {"proxy": "gradient", "every_epochs": 2}, "accumulate": 2}),
    ],
    ids=[
        *("strict", "overlapping-accumulated", "three-momentum-accumulated", "three-overlapping"),
        *("corrected", "overlapping-corrected"),
    ],
)
def test_float64_equals_a_single_process(world, strict, options, tmp_path):
    """The same masks at every update, the same weights to 1e-10, whatever the shares of the batch are."""
    alone = ranks.train({"double": True, **options})
    together = call_together(ranks.train, {"double": True, **options}, strict, cwd=tmp_path, processes=world)
    assert len(alone["masks"]) >= 3
    for found in together:
        assert [torch.equal(a, b) for a, b in zip(found["masks"], alone["masks"], strict=True)] == [True] * UPDATES
        assert found["digests"] == together[0]["digests"]
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=0, atol=1e-10)
        assert (found["flops"], found["samples"]) == (alone["flops"], alone["samples"])
        for ours, theirs in zip(found["metrics"], alone["metrics"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)  # figures of evaluations are computed from float32 logits
        assert found["final"] == pytest.approx(alone["final"], abs=1e-6)


@pytest.mark.parametrize("correction", [None, {"gamma": 1}], ids=["", "corrected"])
@pytest.mark.parametrize("strict", [True, False])
def test_float32_ranks_are_alike_at_every_step(strict, correction, tmp_path):
    """With batch norm, dropout and uneven shares; also the figures, which are those of all samples."""
    options = {"batch_norm": True, "select": "best_val", "correction": correction}
    together = call_together(ranks.train, options, strict, cwd=tmp_path, processes=3 if strict else 2)
    assert len(together[0]["digests"]) == STEPS
    for found in together[1:]:
        for part in ("digests", "metrics", "final"):
            assert found[part] == together[0][part], part


@pytest.mark.parametrize("correction", [None, {"gamma": 1}], ids=["", "corrected"])
def test_a_continued_training_is_bit_identical(correction, tmp_path):
    """From the main process's state, in three processes, where the order of summation matters."""
    options = {"batch_norm": True, "accumulate": 2, "correction": correction}
    for undisturbed, continued in call_together(ranks.resume, options, [1, 4, 7], cwd=tmp_path, processes=3):
        assert continued == [undisturbed[step:] for step in (1, 4, 7)]


def test_all_begin_with_the_weights_and_masks_of_the_main_process(tmp_path):
    (before, after, counts), *others = call_together(ranks.begin, cwd=tmp_path, processes=3)
    assert before == after
    assert all(theirs != before for theirs, _, _ in others)
    assert all((digest, active) == (after, counts) for _, digest, active in others)


def test_first_masks_look_at_whole_batches(tmp_path):
    masks, flops = ranks.first_masks(str(tmp_path))
    assert flops > 0
    for found, cost in call_together(ranks.first_masks, str(tmp_path), cwd=tmp_path, processes=3):
        assert torch.equal(found, masks)
        assert cost == flops


@pytest.mark.parametrize("update", [0, 3])
def test_differing_masks_are_caught_by_all(update, tmp_path):
    when = "at step 0" if update == 0 else "update 3, at step 6"
    for error, saved, _ in call_together(ranks.desynchronise, update, cwd=tmp_path, processes=3):
        assert error.startswith(f"{when}: the masks of rank 2 are not those of rank 0 (of 3 ranks), in layers 2;")
        assert saved == []


@pytest.mark.parametrize("delay", [0, 1])
def test_a_request_to_one_stops_all_at_the_same_step(delay, tmp_path):
    for name, step, saved in call_together(ranks.stop, 1, 5, delay, cwd=tmp_path):
        assert name == "SIGUSR2"
        assert step == 6 + delay
        assert saved == [step]


@pytest.mark.parametrize("delay", [0, 1])
def test_all_look_at_their_weights_when_the_main_process_saves_by_time(delay, tmp_path):
    ours, theirs = call_together(ranks.save_by_time, delay, cwd=tmp_path)
    assert ours == theirs
    assert ours == (list(range(1, STEPS + 1)) if delay == 0 else [*range(2, STEPS, 2), STEPS])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("step", [5, 6])  # 6 is an update
def test_a_loss_that_is_no_number_in_one_stops_all_before_the_step(precision, step, tmp_path):
    for error, before, after in call_together(ranks.diverge, precision, step, cwd=tmp_path):
        assert error == f"loss or gradient not finite at step {step}"
        assert before == after


def test_checksums_tell_masks_apart():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((37, 5), generator=generator) < 0.3
    swapped = mask.clone()
    swapped.view(-1)[[7, 71]] = mask.view(-1)[[71, 7]] = torch.tensor([True, False])
    others = [swapped, mask.t(), ~mask, torch.zeros_like(mask)]
    others += [mask.clone() for _ in range(mask.numel())]
    for i, other in enumerate(others[4:]):
        other.view(-1)[i] ^= True
    assert len({int(checksum(other)) for other in [mask, *others]}) == 1 + len(others)
    strided = torch.empty_strided(mask.shape, (1, 37), dtype=torch.bool).copy_(mask)
    assert checksum(strided) == checksum(mask)


# ---------------------------------------------------------------------------------------------------------------------
# Starting


def environment(**values):
    given = {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500, **values}
    return {key: str(value) for key, value in given.items() if value is not None}


def test_the_place_of_a_process():
    assert own_rank({}) == Rank(0, 1, 0, 1)
    assert own_rank({"WORLD_SIZE": "8"}) == Rank()  # as some clusters set it for whatever they start
    assert own_rank(environment()) == Rank(1, 4, 1, 4)
    assert own_rank(environment(RANK=3, LOCAL_WORLD_SIZE=2)) == Rank(3, 4, 1, 2)
    assert own_rank({"RANK": "0", "WORLD_SIZE": "1"}) == Rank()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MASTER_PORT": None, "LOCAL_RANK": None}, "but not LOCAL_RANK, MASTER_PORT"),
        ({"RANK": "x"}, "must be numbers"),
        ({"RANK": 4}, "RANK=4 of WORLD_SIZE=4"),
    ],
)
def test_a_place_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        own_rank(environment(**values))


@pytest.mark.parametrize(
    ("processes", "world", "multirun", "message"),
    [
        (2, 1, False, r"hardware.processes=2: only one process was started. Type: torchrun --nproc_per_node 2 .*"),
        (2, 4, False, r"hardware.processes=2, but 4 processes were started .*add hardware.processes=4"),
        (1, 4, False, r"hardware.processes=1, but 4 processes were started .*add hardware.processes=4"),
        (2, 2, True, r"-m with hardware.processes=2 .*without -m"),
        (1, 2, True, r"-m with hardware.processes=1 and 2 processes"),
    ],
)
def test_other_processes_than_configured(processes, world, multirun, message):
    configs = [Config(hardware=Hardware(processes=processes))]
    with pytest.raises(ConfigError, match=message):
        check_start(configs, Rank(0, world, 0, world), multirun=multirun)


def test_a_launcher_starts_the_processes_itself():
    configs = [Config(hardware=Hardware(processes=2))]
    check_start(configs, Rank(), multirun=True, by_launcher=True)
    with pytest.raises(ConfigError, match=r"2 processes were started .*, but the launcher starts those of each run"):
        check_start(configs, Rank(0, 2, 0, 2), multirun=True, by_launcher=True)


@pytest.mark.parametrize(("processes", "world", "multirun"), [(1, 1, False), (1, 1, True), (3, 3, False)])
def test_the_processes_that_are_configured(processes, world, multirun):
    check_start([Config(hardware=Hardware(processes=processes))], Rank(0, world, 0, world), multirun=multirun)


def test_what_synchronised_batch_norm_needs():
    def told(**hardware):
        return [text for text in check(Config(hardware=Hardware(**hardware))) if "sync_batch_norm" in text]

    assert told(sync_batch_norm=True, processes=2, device="cuda") == []
    (problem,) = told(sync_batch_norm=True, processes=2)
    assert problem.startswith("hardware.sync_batch_norm=true: PyTorch has it on GPUs only")
    (problem,) = told(sync_batch_norm=True, device="cuda")
    assert problem.startswith("hardware.sync_batch_norm=true would be ignored: there is one process only")


def test_batches_must_leave_every_process_enough():
    config = Config(schedule=Schedule(batch_size=16, accumulate=2), hardware=Hardware(processes=3))
    feasible._check_shards(config, 16 + 6)
    with pytest.raises(ConfigError, match=r"batch_size=16: the 21 training samples leave a batch of 5, too few for 3"):
        feasible._check_shards(config, 16 + 5)


def test_batch_norm_cannot_train_on_a_share_of_one():
    dataset, model = SimpleNamespace(shape=(4,)), nn.BatchNorm1d(4, device="meta")
    config = Config(schedule=Schedule(batch_size=12), hardware=Hardware(processes=3))
    feasible._check_batch_norm(config, model, dataset, 24 + 6)
    for samples in (24 + 5, 24 + 4):  # shares of 2, 2 and 1 samples; of 2, 1 and 1
        with pytest.raises(ConfigError, match=r"accumulate=1 and hardware.processes=3 the .* leave a batch of one"):
            feasible._check_batch_norm(config, model, dataset, samples)
    config.hardware.sync_batch_norm = True
    feasible._check_batch_norm(config, model, dataset, 24 + 4)
    with pytest.raises(ConfigError, match=r"sync_batch_norm=true would be ignored: the model has no batch norm"):
        feasible._check_batch_norm(config, nn.Linear(4, 4), dataset, 24)


def test_synchronised_batch_norm_changes_no_name_and_no_parameter(tmp_path):
    states = []
    for wanted in (False, True):
        hardware = Hardware(sync_batch_norm=wanted)
        config = Config(model=Model(name="resnet20"), data=Data(cache=str(tmp_path)), hardware=hardware)
        training = build.build(complete(config)).training
        norms = [module for module in training.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert len(norms) > 10
        assert all(isinstance(norm, nn.SyncBatchNorm) == wanted for norm in norms)
        optimised = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in training.model.parameters()} == optimised
        states.append(training.state_dict()["model"])
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize(
    ("found", "local_rank", "taken"),
    [(4, 3, 3), (1, 1, 0)],  # all GPUs of the machine, or one that the launcher shows this process only
)
def test_each_process_takes_a_gpu(found, local_rank, taken, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    distributed._take_gpu(Rank(local_rank, 4, local_rank, 4))
    assert chosen == [taken]


@pytest.mark.parametrize(("found", "message"), [(0, "finds no CUDA GPU"), (2, "4 processes .* has 2 GPUs")])
def test_too_few_gpus(found, message, monkeypatch):
    """Jobs run elsewhere, so it is said where."""
    monkeypatch.setattr(distributed, "gethostname", lambda: "node7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(StartError, match=message) as refused:
        distributed._take_gpu(Rank(0, 4, 0, 4))
    assert "this machine (node7)" in str(refused.value)
