"""Training on streamed images: however many workers, and however often it is killed, it is the same training."""

import re

import pytest

from dst.records.read import read_status
from tests.data.pictures import write_folder, write_tiny_imagenet
from tests.processes import run, run_folder, traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning"),
]

STEPS = 24  # 3 epochs of 8


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("set"), {"train": 33, "val": 5})
    return (
        "data=image_folder",
        f"data.root={root}",
        "data.size=10",
        "data.val_fraction=0.1",
        "data.mean=[0.5,0.5,0.5]",
        "data.std=[0.25,0.25,0.25]",
        "data.augment.flip=true",
        "sparsity=rigl_itop",
        "model.hidden=[16]",
        "schedule.epochs=3",
        "schedule.batch_size=8",
        "schedule.update_every=5",
        "checkpoint.every_steps=5",
        "tracking.every_steps=4",
        "tracking.progress=none",
        "hardware.threads=1",
    )


STREAMED = ("data.storage=stream", "data.augment.resized_crop_scale=[0.2,1.0]")


def train(folder, *options, fault=""):
    folder.mkdir(exist_ok=True)
    result = run(*options, cwd=folder, fault=fault)
    assert result.code == (-9 if fault else 0), result.output
    return traces(run_folder(folder / "outputs"))


@pytest.fixture(scope="module")
def reference(options, tmp_path_factory):
    return train(tmp_path_factory.mktemp("reference"), *options, *STREAMED)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_do_not_change_the_training(workers, options, reference, tmp_path):
    assert train(tmp_path, *options, *STREAMED, f"hardware.workers={workers}") == reference


def test_streamed_and_resident_training_are_the_same(options, tmp_path):
    crop = "data.augment.crop_padding=2"
    resident = train(tmp_path / "resident", *options, crop, "data.storage=resident")
    assert train(tmp_path / "streamed", *options, crop, "data.storage=stream", "hardware.workers=2") == resident


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_in_the_middle_of_streamed_epochs(workers, options, reference, tmp_path):
    command = (*options, *STREAMED, f"hardware.workers={workers}")
    for step in (3, 12, 21):
        train(tmp_path, *command, fault=f"kill:step:{step}")
    assert train(tmp_path, *command) == reference
    status = read_status(run_folder(tmp_path / "outputs"))
    assert (status["state"], status["attempt"], status["step"]) == ("done", 4, STEPS)


def test_a_request_to_stop_saves_and_ends(options, reference, tmp_path):
    command = (*options, *STREAMED, "hardware.workers=2")
    result = run(*command, cwd=tmp_path, fault="signal:SIGTERM:11")
    assert result.code == 75, result.output
    assert train(tmp_path, *command) == reference


def test_workers_that_stall_or_die_neither_hold_up_a_stop_nor_leave_a_run_running(options, reference, tmp_path):
    """A stalled one may never answer again, and torch tells of a dead one wherever the run is, also as it ends."""
    command = (*options, *STREAMED, "hardware.workers=2")
    dead = run(*command, cwd=tmp_path, fault="worker:SIGKILL:9")
    assert dead.code == 1, dead.output
    status = read_status(run_folder(tmp_path / "outputs"))
    assert status["state"] == "failed"
    assert re.search(r"a process that loads images died: \d+ \(killed by SIGKILL; was the memory", status["error"])
    assert "Traceback" not in dead.output
    stalled = run(*command, cwd=tmp_path, fault="worker:SIGSTOP:11")
    assert stalled.code == 75, stalled.output
    status = read_status(run_folder(tmp_path / "outputs"))
    assert (status["state"], status["attempt"]) == ("preempted", 2)
    assert 11 <= status["step"] < STEPS
    assert train(tmp_path, *command) == reference


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_a_truncated_picture_is_a_configuration_error(storage, options, tmp_path):
    root = write_folder(tmp_path / "set", {"train": 33, "val": 5})
    path = root / "train" / "class_1" / "7.jpg"
    path.write_bytes(path.read_bytes()[:150])
    result = run(*options, f"data.root={root}", f"data.storage={storage}", cwd=tmp_path)
    assert result.code == 2
    assert str(path) in result.output
    assert "Traceback" not in result.output
    assert not list((tmp_path / "outputs").glob("default/*"))


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_damaged_pngs_end_no_process_but_are_named(storage, options, tmp_path):
    root = write_folder(tmp_path / "set", {"train": 33, "val": 5}, suffix=".png")
    damaged = [root / "train" / "class_1" / "7.png", root / "val" / "class_0" / "0.png"]
    for path in damaged:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x55
        path.write_bytes(data)
    result = run(*options, f"data.root={root}", f"data.storage={storage}", cwd=tmp_path)
    assert result.code == 2, result.output
    assert "2 paths that should be images cannot be used" in result.output
    assert all(str(path) in result.output for path in damaged)
    assert "Traceback" not in result.output
    assert not list((tmp_path / "outputs").glob("default/*"))


def test_in_a_sweep_what_is_wrong_with_a_set_is_told_of_its_cells_before_anything_trains(options, tmp_path):
    root = write_folder(tmp_path / "set", {"train": 33, "val": 5})
    train = write_tiny_imagenet(root / "tiny-imagenet-200") / "train" / "n01" / "images"
    good = (train / "n01_1.JPEG").read_bytes()
    (train / "n01_1.JPEG").write_bytes(good[:150])
    command = (*options[1:], f"data.root={root}", "-m", "data=image_folder,tiny_imagenet", "model.hidden=[16],[8]")
    refused = run(*command, "data.val_fraction=0.25", cwd=tmp_path)
    assert refused.code == 2, refused.output
    told = [line for line in refused.output.splitlines() if "n01_1.JPEG" in line]
    (cells,) = [line.rpartition("(in 2 of 4 cells: ")[2] for line in told]
    assert [f"data=tiny_imagenet model.hidden={hidden}" in cells for hidden in ("[16]", "[8]")] == [True, True]
    assert "data=image_folder" not in refused.output
    assert not list((tmp_path / "outputs").glob("default/*"))
    (train / "n01_1.JPEG").write_bytes(good)
    (train / "n01_2.JPEG").unlink()
    (train / "n01_2.JPEG").symlink_to("/gone")
    refused = run(*command, "data.val_fraction=0.25", cwd=tmp_path)
    assert refused.code == 2, refused.output
    assert refused.output.count("n01_2.JPEG (a link to /gone: No such file or directory)") == 1
    assert "(in 2 of 4 cells: data=tiny_imagenet model.hidden=[16], " in refused.output
