"""Streams: the batches of the decoded set, to the last bit, whichever process decodes them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from dst.data.augment import Augment, resized_crop_box
from dst.data.batches import Batches
from dst.data.cache import load
from dst.data.dataset import DataError, Dataset, Split
from dst.data.files import Files
from dst.data.folder import image_folder
from dst.data.loader import loader
from dst.data.stream import Stream
from dst.data.stream import _heed_parent_only as heed_parent_only
from dst.data.stream import _next as handed_over
from dst.options import OptionError
from tests.data.pictures import write_folder

pytestmark = pytest.mark.filterwarnings(
    "ignore:The image decoding and encoding capabilities:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("set"), {"train": 15, "test": 3}, height=14, width=11)


def prepare(root: Path, storage: str, size: int = 10, center_crop: float | None = None) -> Dataset:
    cache = str(root.parent / "cache")
    options = {"size": size, "center_crop": center_crop, "storage": storage}
    return load("image_folder", image_folder, root=str(root), cache=cache, download=False, **options)


def stream(root: Path, augment: Augment, workers: int = 0, **options) -> Stream:
    files = prepare(root, "stream").train
    assert isinstance(files, Files)
    given = {"batch_size": 7, "seed": 3, "shuffle": True, **STATISTICS, **options}
    return Stream(files, augment=augment, workers=workers, **given)


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(flip=True),
        Augment(crop_padding=2),
        Augment(crop_padding=3, padding_mode="zeros", flip=True),
        Augment(crop_padding=4, flip=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("center_crop", [None, 0.8])
def test_streamed_and_resident_batches_are_the_same_to_the_last_bit(root, augment, center_crop):
    options = {"batch_size": 8, "seed": 5, "augment": augment, **STATISTICS}
    for part, shuffle in (("train", True), ("test", False)):
        resident = loader(getattr(prepare(root, "resident", center_crop=center_crop), part), shuffle=shuffle, **options)
        streamed = loader(getattr(prepare(root, "stream", center_crop=center_crop), part), shuffle=shuffle, **options)
        assert isinstance(resident, Batches)
        assert isinstance(streamed, Stream)
        assert (len(streamed), streamed.samples) == (len(resident), resident.samples)
        for epoch, phase, start in [(0, 0, 0), (1, 0, 2), (1, 2, 0), (0, 0, len(resident))]:
            ours, theirs = (list(each.epoch(epoch, phase, min(start, len(resident)))) for each in (streamed, resident))
            assert same(ours, theirs)
            assert all(images.is_contiguous() for images, _ in ours)


@pytest.mark.parametrize(
    "augment", [Augment(crop_padding=2, flip=True), Augment(resized_crop_scale=[0.1, 1], flip=True)]
)
def test_the_number_of_workers_does_not_matter_nor_does_starting_late(root, augment):
    reference = stream(root, augment)
    whole = [list(reference.epoch(epoch)) for epoch in range(2)]
    assert not same(*whole)
    for workers in (1, 2, 4):
        ours = stream(root, augment, workers)
        for epoch in range(2):
            assert same(list(ours.epoch(epoch)), whole[epoch])
        assert same(list(ours.epoch(1, start=3)), whole[1][3:])
        begun = ours.epoch(0)
        next(begun)  # and leave it
        assert same(list(ours.epoch(1)), whole[1])
        with pytest.raises(RuntimeError, match="another epoch"):
            next(begun)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_may_be_read_again_with_the_last_one_still_at_hand(root, workers):
    """As measuring at the end of an epoch does."""
    augment = Augment(crop_padding=2, flip=True)
    whole = list(stream(root, augment).epoch(0))
    ours, met = stream(root, augment, workers), []
    for batch in ours.epoch(0):
        met.append(batch)
        if len(met) == len(whole):
            assert same(list(islice(ours.epoch(0), 2)), whole[:2])
    assert same(met, whole)
    assert same(list(ours.epoch(0)), whole)


def test_a_stream_leaves_the_random_numbers_of_the_training_alone(root):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(stream(root, Augment(resized_crop_scale=[0.1, 1], flip=True), workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_depends_on_neither_batch_size_nor_order(root):
    augment = Augment(resized_crop_scale=[0.1, 1], flip=True)
    files = prepare(root, "stream").train

    def by_sample(**options) -> dict[int, torch.Tensor]:
        numbered = Files(files.root, files.names, files.stamps, torch.arange(len(files)), files.resize)
        made = Stream(numbered, augment=augment, seed=3, **STATISTICS, **options).epoch(2, phase=1)
        return {int(n): image for images, labels in made for image, n in zip(images, labels, strict=True)}

    one, other = by_sample(batch_size=7, shuffle=True), by_sample(batch_size=4)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)


# ---------------------------------------------------------------------------------------------------------------------
# Random-resized crops


@pytest.mark.parametrize(("height", "width"), [(40, 50), (64, 64), (10, 100), (100, 10), (3, 2), (1, 1)])
def test_boxes_are_exactly_torchvisions(height, width):
    """The same generator gives the same boxes, the fallback to the centre included."""
    image = torch.empty(3, height, width)
    for seed in range(300):
        torch.manual_seed(seed)
        reference = RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
        assert resized_crop_box(height, width, [0.08, 1.0], seed) == tuple(reference)


def test_a_resized_crop_is_that_box_of_the_file_resized_with_antialiasing(root):
    files = prepare(root, "stream").train
    made = Stream(
        files, batch_size=30, mean=[0.0] * 3, std=[1.0] * 3, augment=Augment(resized_crop_scale=[0.2, 0.9]), seed=4
    )
    images = [next(made.epoch(epoch))[0] for epoch in range(2)]
    assert not torch.equal(*images)
    from dst.data.augment import draw

    seeds = draw(Augment(resized_crop_scale=[0.2, 0.9]), 30, 4, 0, 0, shuffle=False).seeds
    assert len(set(seeds.tolist())) == 30
    for n, ours in enumerate(images[0]):
        top, left, height, width = resized_crop_box(14, 11, [0.2, 0.9], int(seeds[n]))
        whole = decode_image(str(files.path(n)), mode=ImageReadMode.RGB).double()
        reference = functional.resized_crop(whole, top, left, height, width, [10, 10], antialias=True)
        assert (ours * 255 - reference).abs().max() <= 0.5 + 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Errors and signals


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_during_training_is_named(tmp_path, workers):
    root = write_folder(tmp_path / "set", {"train": 10, "test": 1}, height=14, width=11)
    ours = stream(root, Augment(), workers)
    path = root / "train" / "class_1" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        list(ours.epoch(0))
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot decode .*3\.jpg"):
        list(ours.epoch(0))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_images_is_refused(root):
    with pytest.raises(DataError, match=r"mean=None and std=.*.*mean="):
        stream(root, Augment(), mean=None)
    with pytest.raises(DataError, match="has 1 numbers, but the images have 3 channels"):
        stream(root, Augment(), mean=[0.5])
    with pytest.raises(DataError, match="reflection needs less than the image size"):
        stream(root, Augment(crop_padding=10))
    with pytest.raises(OptionError, match=r"batch_size=0: must be >= 1"):
        stream(root, Augment(), batch_size=0)
    with pytest.raises(DataError, match="cannot start at batch 6"):
        stream(root, Augment()).epoch(0, start=6)
    with pytest.raises(ValueError, match="does not go with crop_padding=1"):
        Augment(crop_padding=1, resized_crop_scale=[0.1, 1])
    resident = prepare(root, "resident").train
    assert isinstance(resident, Split)
    with pytest.raises(DataError, match="crops images at their full size"):
        Batches(resident, batch_size=4, augment=Augment(resized_crop_scale=[0.1, 1]))


def test_requests_to_stop_do_not_kill_the_workers(root):
    """SLURM and terminals signal the whole process group; the main process then wants to finish its step."""
    ours = stream(root, Augment(), workers=2, batch_size=1)
    batches = ours.epoch(0)
    next(batches)
    workers = [worker.pid for worker in ours._loader._iterator._workers]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        sender = "import os, sys\nfor pid in sys.argv[2:]: os.kill(int(pid), int(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", sender, str(int(number)), *map(str, workers)], check=True)
    assert len(list(batches)) == 29


def test_a_program_that_leaves_an_epoch_half_way_still_ends(root):
    code = (
        "from dst.data.augment import Augment\nfrom dst.data.cache import load\n"
        "from dst.data.stream import Stream\nfrom dst.data.folder import image_folder\n"
        f"data = load('x', image_folder, root={str(root)!r}, cache={str(root.parent / 'cache')!r}, download=False, "
        "size=8, storage='stream')\n"
        "options = dict(batch_size=1, mean=[0.5] * 3, std=[0.2] * 3, workers=2)\n"
        "streams = [Stream(data.train, shuffle=shuffle, **options) for shuffle in (True, False)]\n"
        "begun = [stream.epoch(0) for stream in streams]\n"
        "for epoch in begun: next(epoch)\n"
        "raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=60).returncode == 7


def test_requests_to_stop_while_the_workers_start_do_not_kill_them(root, monkeypatch):
    """They ignore such requests only once they run: one that comes before must wait."""
    monkeypatch.setattr("dst.data.stream._heed_parent_only", slow_to_heed)
    ours = stream(root, Augment(), workers=2, batch_size=1)
    assert len(list(ours.epoch(0))) == 30


def slow_to_heed(worker: int) -> None:
    sender = "import os, sys\nfor number in sys.argv[2:]: os.kill(int(sys.argv[1]), int(number))"
    numbers = [str(int(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)]
    subprocess.run([sys.executable, "-c", sender, str(os.getpid()), *numbers], check=True)
    heed_parent_only(worker)


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker"), ConnectionResetError("reset"), EOFError()])
def test_a_worker_that_died_is_told_whatever_it_did_then(error):
    """In the midst of handing a batch over, its connection breaks, or simply ends."""

    class Workers:
        def __init__(self):
            self._workers = [multiprocessing.get_context("fork").Process(target=signal.pause)]
            self._workers[0].start()
            self._workers[0].kill()

        def __next__(self):
            raise error

    with pytest.raises(ChildProcessError, match=r"a process that loads images died: \d+ \(killed by SIGKILL"):
        handed_over(Workers())
