"""Shards partition every batch, whatever the sizes, and make what the whole batch has in their place."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.data.folder import image_folder
from dst.data.resize import Resize
from dst.data.shard import Shard
from dst.data.stream import Stream
from tests.data.pictures import write_folder


@given(samples=st.integers(1, 60), batch_size=st.integers(1, 70), count=st.integers(1, 9), data=st.data())
def test_shards_partition_every_batch(samples, batch_size, count, data):
    batches = -(-samples // batch_size)
    start = data.draw(st.integers(0, batches))
    shards = [list(Shard(i, count).slices(samples, batch_size, start)) for i in range(count)]
    taken = sorted(n for slices in shards for part in slices for n in range(part.start, part.stop))
    assert taken == list(range(start * batch_size, samples))
    assert all(part.stop > part.start for slices in shards for part in slices)


@given(size=st.integers(0, 200), count=st.integers(1, 20))
def test_shards_are_those_of_tensor_split(size, count):
    expected = [part.tolist() for part in torch.arange(size).tensor_split(count)]
    assert [list(Shard(i, count).of(range(size))) for i in range(count)] == expected


def joined(loader, count, start):
    """Return the batches of an epoch, put together from their shards."""
    shards = [list(loader.epoch(3, start=start, shard=Shard(i, count))) for i in range(count)]
    whole = range(max(len(batches) for batches in shards))
    parts = [[batches[i] for batches in shards if i < len(batches)] for i in whole]
    return [tuple(torch.cat(column) for column in zip(*part, strict=True)) for part in parts]


@pytest.mark.parametrize("count", [2, 3])
def test_resident_shards_make_the_whole_batch(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (43, 1, 6, 6), generator=generator, dtype=torch.uint8)
    loader = Batches(
        Split(images, torch.arange(43)), batch_size=8, seed=1, shuffle=True, augment=Augment(crop_padding=2, flip=True)
    )
    assert_same(joined(loader, count, start=1), list(loader.epoch(3, start=1)))


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_shards_make_the_whole_batch(workers, tmp_path):
    root = write_folder(tmp_path / "set", {"train": 17, "val": 1})
    files, _, _ = image_folder(root, download=False)
    loader = Stream(
        replace(files, resize=Resize(10, None)),
        batch_size=5,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        seed=1,
        shuffle=True,
        augment=Augment(resized_crop_scale=[0.2, 1.0], flip=True),
        workers=workers,
    )
    assert_same(joined(loader, 3, start=2), list(loader.epoch(3, start=2)))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
