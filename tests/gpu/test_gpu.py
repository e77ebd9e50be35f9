"""What differs on a GPU: selection without waiting, number formats, determinism, resuming, groups of processes."""

import json
import os
import shutil
import warnings
from contextlib import contextmanager

import pytest
import torch

from dst.config.schema import complete
from dst.run.build import build
from dst.sparsity import select
from dst.sparsity.select import (
    bottom_k,
    count_true,
    each_bottom_k,
    each_top_k,
    exchanged,
    pooled_top_k,
    row_top_k,
    top_k,
)
from dst.training.observer import NoObserver
from tests.gpu import ranks
from tests.processes import call_together, run, run_folder, traces
from tests.sparsity import test_catalogue as catalogue
from tests.sparsity import test_segments as of_a_device

pytestmark = pytest.mark.slow

STRICT = ("hardware=gpu", "hardware.determinism=strict")
SMALL = (
    "model=resnet20",
    "schedule.epochs=3",
    "schedule.batch_size=64",
    "schedule.update_every=10",
    "checkpoint.every_steps=7",
    "tracking=none",
    "tracking.progress=none",
)


@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
def test_selection_is_that_of_the_cpu(kind):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(shape, generator=generator) for shape in [(64, 3, 3, 3), (700, 300), (10, 512)]]
    if kind != "normal":
        scores = [(s * 4).round() if kind == "ties" else torch.zeros_like(s) for s in scores]
    among = [torch.rand(s.shape, generator=generator) < 0.3 for s in scores]
    on_gpu = [(s.cuda(), a.cuda()) for s, a in zip(scores, among, strict=True)]
    for (score, where), (ours, ours_where) in zip(zip(scores, among, strict=True), on_gpu, strict=True):
        for k in (1, int(where.sum()) // 3, int(where.sum())):
            assert torch.equal(top_k(score, k, where), top_k(ours, k, ours_where).cpu())
            assert torch.equal(bottom_k(score, k, where), bottom_k(ours, k, ours_where).cpu())
        rows, places = score.flatten(1), where.flatten(1)
        quotas = places.sum(1) // 2
        assert torch.equal(row_top_k(rows, quotas, places), row_top_k(rows.cuda(), quotas.cuda(), places.cuda()).cpu())
    for k in (3, 1000, sum(int(where.sum()) for where in among)):
        expected, found = pooled_top_k(scores, k, among), _pooled(on_gpu, k)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", ["normal", "ties", "zero", "extreme"])
def test_selection_in_all_layers_is_that_of_the_cpu_and_never_waits(kind):
    """With deterministic algorithms alone; only tables, which are made once, may wait."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 3, 3), (700, 300), (10, 512), (512, 256, 3, 3), (1,), (4096,), (33, 1, 5, 5)]
    scores, others = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in "ab")
    if kind == "extreme":
        for score in scores:
            score.view(-1)[::3] = -0.0
            score.view(-1)[1::7] = torch.inf
            score.view(-1)[2::7] = -torch.inf
            score.view(-1)[3::7] = 1e-45
    elif kind != "normal":
        scores = [(s * 4).round() if kind == "ties" else torch.zeros_like(s) for s in scores]
    masks = [torch.rand(s.shape, generator=generator) < 0.3 for s in scores]
    masks[4].fill_(True)
    ks = [int(mask.sum()) // 3 for mask in masks]
    expected = [each(scores, ks, masks) for each in (each_top_k, each_bottom_k)]
    moved = exchanged((scores, ks), (others, ks), masks, regrow=False)
    ours, theirs, places = ([tensor.cuda() for tensor in some] for some in (scores, others, masks))
    held = [int(mask.sum()) for mask in masks]
    found = [each(ours, ks, places) for each in (each_top_k, each_bottom_k)]
    exchanged((ours, ks), (theirs, ks), places, regrow=False, held=held)
    with deterministic_and_without_waiting():
        again = [each(ours, ks, places) for each in (each_top_k, each_bottom_k)]
        changed = exchanged((ours, ks), (theirs, ks), places, regrow=False, held=held)
    for results in (found, again):
        for masks_here, masks_there in zip(expected, results, strict=True):
            assert all(torch.equal(a, b.cpu()) for a, b in zip(masks_here, masks_there, strict=True))
    for pair, other in zip(moved, changed, strict=True):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(pair, other, strict=True))
    assert count_true(places) == [int(mask.sum()) for mask in masks]


@contextmanager
def deterministic_and_without_waiting():
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", [case for case, waits in of_a_device.UPDATING.items() if waits])
def test_updates_of_all_layers_at_once_are_those_of_each_and_wait_where_they_must(case, monkeypatch):
    """``torch.cuda.set_sync_debug_mode`` sees what a test without a GPU can only tell by names."""
    method, *options = case.split()
    sparsifier, give_gradients = of_a_device.moving(method, "hardware=gpu", *options)
    give_gradients()
    assert sparsifier.step(gradients_are_finite=True) is False
    give_gradients()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            assert sparsifier.step(gradients_are_finite=True) is True
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in told if "synchronizing CUDA operation" in str(warning.message)]
    assert len(waits) == len(of_a_device.UPDATING[case])
    monkeypatch.setattr(select, "_FEW", 1_000)
    one_by_one, _ = of_a_device.moved(method, ("hardware=gpu", *options), updates=1)
    assert one_by_one.reports == sparsifier.topology.reports
    assert all(map(torch.equal, one_by_one.masks, sparsifier.topology.masks))


def _pooled(pairs, k):
    return pooled_top_k([scores for scores, _ in pairs], k, [among for _, among in pairs])


PACKED = (
    "sparsity.compute=packed",
    "sparsity.density=0.3",
    "sparsity.pattern.block_size=32",
    "sparsity.pattern.column_unit=16",
)


@pytest.mark.parametrize("method", ["dsb", "ssb"])
def test_packed_units_resume_bit_identically(method, tmp_path):
    catalogue.keeps_its_promises(method, "resnet20", "sgd", tmp_path, (*STRICT, *PACKED))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", catalogue.METHODS)
def test_every_method_keeps_its_promises_and_resumes_bit_identically(method, optimizer, tmp_path):
    catalogue.keeps_its_promises(method, "resnet20", optimizer, tmp_path, STRICT)


@pytest.mark.parametrize("method", ["rigl_itop", "snfs", "granet", "srigl", "grasp", "dsb"])
def test_attention_keeps_its_promises_and_resumes_bit_identically(method, tmp_path):
    catalogue.keeps_its_promises(method, "vit_tiny", "adamw", tmp_path, STRICT)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_first_masks_do_not_depend_on_what_the_process_did_before(method):
    config = catalogue.composed(method, "resnet20", STRICT)
    first = build(config).training.sparsifier.topology.masks
    for _ in range(5):
        catalogue.trained(config)
        again = build(config).training.sparsifier.topology.masks
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, ()) for name in ["dense", "static", "set_itop", "rigl", "snfs", "granet", "srigl", "nm_rigl", "dsb"]),
        ("dsb", PACKED),
        ("set_itop", ("schedule.clip_norm=0.1", "schedule.clip_value=0.01")),
    ],
)
def test_an_ordinary_step_never_waits_for_the_device(method, options):
    config = catalogue.composed(method, "resnet20", ("hardware=gpu", "schedule.epochs=4", *options))
    if config.sparsity.update.every is not None:
        config.sparsity.update.every = 10
    training = build(complete(config)).training
    batches = training.train_batches.epoch(0)
    taken = 0
    try:
        for inputs, labels in batches:
            taken += 1
            if taken == 3:  # the first ones set up the device
                torch.cuda.set_sync_debug_mode("error")
            training.train_step(inputs, labels, NoObserver())
            training._guard.check()
            if taken == 5:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken == 5
    assert training.sparsifier.updates == 0


@pytest.mark.parametrize("model", ["resnet20", "vit_tiny"])
def test_a_step_of_adam_never_waits_for_the_device_either(model):
    """With weights that have been grown, whose age it goes by: the updates are at steps 2 and 4."""
    config = catalogue.composed("rigl_itop", model, ("hardware=gpu", "schedule.epochs=4", *catalogue.ADAMW))
    training = build(complete(config)).training
    taken = 0
    try:
        for inputs, labels in training.train_batches.epoch(0):
            is_ordinary = taken >= 4 and not training.sparsifier.update_due()
            torch.cuda.set_sync_debug_mode("error" if is_ordinary else "default")
            training.train_step(inputs, labels, NoObserver())
            training._guard.check()
            torch.cuda.set_sync_debug_mode("default")
            taken += 1
            if taken == 5:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken == 5
    assert training.sparsifier.updates == 2
    assert training.sparsifier.weights.births


@pytest.mark.parametrize("flow", ["add", "move"])
def test_first_masks_are_mended_on_the_device(flow):
    options = (
        "hardware=gpu",
        "sparsity.density=0.01",
        f"sparsity.repair.flow={flow}",
        "sparsity.repair.orthogonal=true",
    )
    training = build(catalogue.composed("static", "resnet20", options)).training
    topology = training.sparsifier.topology
    assert all(mask.is_cuda for mask in topology.masks)
    assert topology.active == round(0.01 * topology.size) if flow == "move" else topology.active > 0.01 * topology.size
    for weight, mask in zip(training.sparsifier.weights.weights, topology.masks, strict=True):
        assert torch.equal(weight != 0, mask)
        assert mask.flatten(1).any(1).all()  # every unit has an edge


@pytest.mark.parametrize("proxy", ["loss", "gradient"])
@pytest.mark.parametrize("method", ["dense", "set_itop", "granet"])
def test_a_corrected_gradient_never_waits_for_the_device(method, proxy):
    """Neither its pass over an epoch, up to the estimate, nor a step; also once the topology has changed."""
    options = ("hardware=gpu", "schedule.epochs=4", "correction=agent", f"correction.proxy={proxy}")
    config = catalogue.composed(method, "resnet20", options)
    training = build(complete(config)).training
    number = len(training.train_batches)
    try:
        for epoch in range(2):
            ticks = iter(range(1, number + 1))

            def tick(ticks=ticks):
                torch.cuda.set_sync_debug_mode("error" if 1 < next(ticks) < number else "default")

            training.correction.begin_epoch(epoch, tick)
            for i, batch in enumerate(training.train_batches.epoch(epoch)):
                is_ordinary = i > 1 and not training.sparsifier.update_due()  # the first ones set up the device
                torch.cuda.set_sync_debug_mode("error" if is_ordinary else "default")
                training.train_step(*batch, NoObserver())
                training._guard.check()
                torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "correction/estimate" in training.correction.figures(2)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("hardware.precision=fp16",),
        ("hardware.precision=bf16", "hardware.channels_last=true"),
        ("data.size=16",),
        ("correction=agent", "correction.gamma=1"),
    ],
    ids=["fp32", "fp16", "bf16-channels-last", "resized", "corrected"],
)
def test_kills_and_stops_leave_no_trace(options, tmp_path):
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    command = (*SMALL, *STRICT, *options)
    result = run(*command, cwd=undisturbed)
    assert result.code == 0, result.output
    assert run(*command, cwd=disturbed, fault="kill:step:15").code == -9
    assert run(*command, cwd=disturbed, fault="signal:SIGTERM:31").code == 75
    result = run(*command, cwd=disturbed)
    assert result.code == 0, result.output
    assert "continuing from step 31" in result.output
    assert traces(run_folder(disturbed / "outputs")) == traces(run_folder(undisturbed / "outputs"))


@pytest.mark.parametrize("hardware", ["gpu", "gpu_bf16"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_all_number_formats_learn(hardware, precision, tmp_path):
    options = (f"hardware={hardware}", f"hardware.precision={precision}", "schedule.epochs=10", "model=resnet20")
    result = run(*options, "schedule.batch_size=64", "tracking=none", cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((run_folder(tmp_path / "outputs") / "summary.json").read_text())
    assert summary["test/accuracy"] > 0.93


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_divergence_is_seen_in_time(place, tmp_path):
    result = run(*SMALL, *STRICT, "hardware.capture=never", cwd=tmp_path, fault=f"nan:{place}:16")
    assert result.code == 3
    assert "not finite at step 16" in result.output


def test_a_group_of_one_trains_as_a_process_by_itself(tmp_path):
    """Every collective goes through NCCL."""
    ((alone, grouped),) = call_together(ranks.train, True, cwd=tmp_path, processes=1)
    assert alone["updates"] >= 3
    assert grouped["digest"] == alone["digest"]
    ((alone, grouped),) = call_together(ranks.train, False, "sparsity=dense", cwd=tmp_path, processes=1)
    assert grouped["updates"] == 0
    assert torch.isfinite(grouped["weights"]).all()


@pytest.mark.parametrize("strict", [True, False])
def test_processes_are_alike_on_a_gpu(strict, tmp_path):
    one, other = call_together(ranks.train_on_one_gpu, strict, "hardware.processes=2", cwd=tmp_path)
    assert one["updates"] >= 3
    assert one["digest"] == other["digest"]


def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path):
    both = ("sparsity=dense", "schedule.lr.peak=0.01")
    options = (*both, "hardware.processes=2", "hardware.sync_batch_norm=true")
    one, other = call_together(ranks.train_on_one_gpu, True, *options, cwd=tmp_path)
    assert one["digest"] == other["digest"]
    assert "SyncBatchNorm" in one["layers"]
    assert "BatchNorm2d" not in one["layers"]
    (alone,) = call_together(ranks.train_on_one_gpu, True, *both, cwd=tmp_path, processes=1)
    (apart, _) = call_together(ranks.train_on_one_gpu, True, *both, "hardware.processes=2", cwd=tmp_path)
    error = (one["weights"] - alone["weights"]).norm() / alone["weights"].norm()
    without = (apart["weights"] - alone["weights"]).norm() / alone["weights"].norm()
    assert error < 1e-3
    assert without > 10 * error


def test_processes_need_a_gpu_each(tmp_path):
    count = torch.cuda.device_count()
    for error in call_together(ranks.share_a_gpu, cwd=tmp_path, processes=count + 1):
        assert f"{count + 1} processes were started on" in error
        assert "start one for each GPU" in error


@pytest.fixture(scope="module")
def by_themselves(tmp_path_factory):
    """Three runs, one after another; the folder in which they were started."""
    folder = tmp_path_factory.mktemp("alone")
    result = run("-m", *SMALL, *STRICT, "seed=0,1,2", cwd=folder)
    assert result.code == 0, result.output
    return folder


@pytest.mark.parametrize("under_mps", [True, False])
def test_runs_side_by_side_on_a_gpu_are_runs_by_themselves(tmp_path, by_themselves, under_mps):
    """With the MPS of their job, where the machine has it, and without."""
    if under_mps and shutil.which("nvidia-cuda-mps-control") is None:
        pytest.skip("there is no nvidia-cuda-mps-control on PATH")
    environment = {} if under_mps else {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "none")}
    one_gpu = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}
    packed = ("hydra/launcher=local", "hydra.launcher.wait=true", "hydra.launcher.runs_per_job=3")
    result = run("-m", *packed, *SMALL, *STRICT, "seed=0,1,2", cwd=tmp_path, env=environment | one_gpu)
    assert result.code == 0, result.output
    (log,) = (tmp_path / "outputs").glob(".launch/*/*.out")
    told = (
        "under MPS, each with at most this memory: 0=" if under_mps else "without an MPS of this job: that of CUDA_MPS"
    )
    assert f"3 runs at once share GPU {one_gpu['CUDA_VISIBLE_DEVICES']} {told}" in log.read_text()
    folders = sorted(path.parent for path in (tmp_path / "outputs").rglob("summary.json"))
    assert len(folders) == 3
    for folder in folders:
        assert traces(folder) == traces(by_themselves / folder.relative_to(tmp_path))
