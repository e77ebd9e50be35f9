"""Runs with fused batch norm and dropout: near those of torch, resumed to the last bit, refused where they must be."""

import pytest
import torch

from dst.config.checks import check
from dst.config.schema import Config, ConfigError, Hardware, complete
from dst.run.build import build
from dst.run.feasible import check as check_feasible
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.composed import compose_cells
from tests.procedures.ranks import train
from tests.processes import REPOSITORY, call_together, run, run_folder, traces
from tests.states import same

SMALL = (
    "hardware.threads=1",
    "schedule.batch_size=32",
    "schedule.epochs=1",
    "schedule.max_steps=6",
    "schedule.update_every=3",
    "tracking=none",
    "tracking.progress=none",
)
WRN = ("model=wrn_22_2", "sparsity=rigl_itop")


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")

    def make(*overrides):
        words = (*SMALL, f"output.root={root}", *overrides)
        ((_, config),) = compose_cells(REPOSITORY / "conf", words, multirun=False)
        return complete(config)

    return make


class Stopper(NoObserver):
    def __init__(self, at=None):
        self.at, self.stop, self.saved = at, StopFlag(), None

    def on_step(self, step):
        if step == self.at:
            self.stop.requested = "SIGTERM"

    def on_checkpoint(self, step, state):
        self.saved = state


def trained(config):
    training = build(config).training
    training.run(NoObserver(), StopFlag())
    return training


@pytest.mark.parametrize(
    "method",
    [
        WRN,
        (*WRN, "correction=agent", "schedule.accumulate=2"),
        ("model=resnet20", "sparsity=granet", "hardware.channels_last=true"),
        ("model=mlp", "model.hidden=[30]", "model.batch_norm=true", "sparsity=edge_popup"),
    ],
    ids=["dropout", "snapshot", "maps", "learned masks"],
)
def test_a_stopped_run_ends_as_an_undisturbed_one(method, composed):
    config = composed("hardware.fused=all", *method)
    whole, begun, stopper = trained(config), build(config).training, Stopper(at=4)
    with pytest.raises(StopRequestedError):
        begun.run(stopper, stopper.stop)
    resumed = build(config).training
    resumed.load_state_dict(stopper.saved)
    torch.manual_seed(1)  # another process would have others
    resumed.run(NoObserver(), StopFlag())
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("model", ["resnet20", "wrn_22_2"])
def test_some_steps_are_near_those_of_torch(model, composed):
    """And checkpoints have the same names, so that one goes on from the other's weights."""
    rest = [
        f"model={model}",
        "sparsity=static",
        "schedule.max_steps=4",
        "schedule.batch_size=128",
        "schedule.lr.peak=0.01",
    ]
    rest += ["model.dropout=0"] * model.startswith("wrn")
    plain, fused = (trained(composed(*rest, f"hardware.fused={which}")) for which in ("none", "all"))
    assert plain.state_dict().keys() == fused.state_dict().keys()
    states = [training.model.state_dict() for training in (plain, fused)]
    assert list(states[0]) == list(states[1])
    first = build(composed(*rest)).training.model.state_dict()
    one, other, first = (torch.cat([t.flatten().double() for t in state.values()]) for state in (*states, first))
    assert 0 < (one - other).norm() < 5e-3 * (one - first).norm()  # channels-last images alone: 1e-3
    assert same(*(training.sparsifier.state_dict()["masks"] for training in (plain, fused)))
    assert same(*(training.ledger.state_dict() for training in (plain, fused)))


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_later_levels_are_scored_by_the_fused_network(criterion, composed):
    """Its gradients are by kernels (snip), or by torch in float64 (synflow)."""
    levels = ["procedure=imp", f"procedure.criterion={criterion}", "procedure.density=0.25", "procedure.keep=0.5"]
    method = [
        "model=mlp",
        "model.hidden=[24]",
        "model.batch_norm=true",
        "sparsity=dense",
        "schedule.epochs=4",
        "schedule.max_steps=null",
    ]
    found = [trained(composed(*method, *levels, f"hardware.fused={which}")) for which in ("none", "all")]
    active = [training.sparsifier.topology.active for training in found]
    assert active[0] == active[1] < 0.3 * found[0].sparsifier.topology.size
    masks = [torch.cat([mask.flatten() for mask in training.sparsifier.topology.masks]) for training in found]
    assert int((masks[0] & masks[1]).sum()) > 0.9 * active[0]


def test_two_processes_end_alike(tmp_path):
    """Each drops for itself, by the seed of its rank, and both go on with the statistics of the main one."""
    words = [*SMALL, "hardware.processes=2", "hardware.fused=all", "model=wrn_22_2", "sparsity=rigl"]
    found = call_together(train, *words, cwd=tmp_path)
    assert same(*(one["final"] for one in found))


def test_a_run_says_once_what_is_fused_and_keeps_kernels_beside_its_records(tmp_path):
    words = [
        *SMALL,
        "model=wrn_22_2",
        "model.dropout=0.2",
        "sparsity=dense",
        "schedule.max_steps=2",
        "hardware.fused=all",
    ]
    done = run(*words, cwd=tmp_path)
    assert done.code == 0, done.output
    told = (
        "fused batch norms: 19, of which 19 with the ReLU that follows and 0 with an addition before it; dropouts: 9\n"
    )
    assert done.output.count(told) == done.output.count("fused") == 1
    assert [file.suffix for file in sorted((tmp_path / "outputs" / ".kernels").iterdir())] == [".json", ".so"]
    assert traces(run_folder(tmp_path / "outputs"))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "told"),
    [
        ({"device": "cuda"}, "with hardware.device=cuda it has no meaning: these kernels are for CPUs; use none"),
        ({"compile": True}, "with hardware.compile=true the compiler would stop at each kernel"),
        ({"precision": "bf16"}, "with hardware.precision=bf16 it would be ignored: convolutions then give half"),
        ({"precision": "fp16"}, "with hardware.precision=fp16 it would be ignored: convolutions then give half"),
        ({"sync_batch_norm": True}, "with hardware.sync_batch_norm=true statistics cannot be taken over all processes"),
    ],
)
def test_what_it_does_not_go_with(hardware, told):
    problems = [text for text in check(Config(hardware=Hardware(fused="all", **hardware))) if "hardware.fused" in text]
    assert len(problems) == 1
    assert problems[0].startswith(f"hardware.fused=all: {told}")


def test_a_switch_is_refused():
    for word in ("off", "true"):
        ((_, config),) = compose_cells(REPOSITORY / "conf", [f"hardware.fused={word}"], multirun=False)
        told = f"hardware.fused={config.hardware.fused}: allowed: all, none"
        assert [text for text in check(config) if "fused" in text] == [told]


@pytest.mark.parametrize("model", ["mlp", "lenet_300_100"])
def test_a_model_without_norm_and_dropout_is_refused(model, composed):
    config = composed("hardware.fused=all", f"model={model}", "schedule.epochs=5")
    with pytest.raises(ConfigError, match=r"fused=all would be ignored: the model has neither batch norm nor dropout"):
        check_feasible(config)


def test_a_machine_without_a_compiler_is_refused_with_the_reason(tmp_path, monkeypatch, composed):
    """On the node too, which builds anew; who submits from another machine needs none."""
    from dst.kernels import build as building

    monkeypatch.setenv("CC", "no-such-compiler")
    building._compiler.cache_clear()
    try:
        config = composed("hardware.fused=all", f"output.root={tmp_path}", "model=resnet20", "sparsity=dense")
        for fails in (check_feasible, build):
            with pytest.raises(ConfigError) as error:
                fails(config)
            assert error.value.problems == [
                "hardware.fused=all: there is no C compiler (no-such-compiler) on this machine; use hardware.fused=none"
            ]
        assert check_feasible(config, elsewhere=True) == []
    finally:
        building._compiler.cache_clear()


@pytest.mark.parametrize("which", ["none", "all"])
def test_nothing_reads_memory_that_nobody_wrote(which, composed, monkeypatch):
    """Which PyTorch can fill with what is not a number, at a cost that strict determinism does not pay."""
    config = composed(f"hardware.fused={which}", *WRN, "schedule.max_steps=4")
    found = []
    for fills in (False, True):
        training = build(config).training
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fills)
        training.run(NoObserver(), StopFlag())
        found.append(training.state_dict())
    assert same(*found)
