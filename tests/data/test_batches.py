"""Batches: each is a pure function of (seed, phase, epoch, sample), and equals a naive reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.dataset import DataError, Split
from dst.data.normalise import channel_statistics
from dst.options import OptionError

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make_split(samples: int, channels: int = 3, height: int = 6, width: int = 5) -> Split:
    generator = torch.Generator().manual_seed(samples)
    images = torch.randint(256, (samples, channels, height, width), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(samples))  # the label tells which sample it is


def raw(split: Split, **options) -> Batches:
    """Batches whose pixels are still recognisable: x / 255."""
    channels = split.images.shape[1]
    return Batches(split, mean=[0.0] * channels, std=[1.0] * channels, **options)


def by_sample(batches: Batches, *args: int, **kwargs: int) -> dict[int, Tensor]:
    return {
        int(label): image
        for images, labels in batches.epoch(*args, **kwargs)
        for image, label in zip(images.cpu(), labels.cpu(), strict=True)
    }


def crops(image: Tensor, augment: Augment) -> list[Tensor]:
    """All images that augmentation may make of one uint8 [C, H, W], pixel by pixel."""
    channels, height, width = image.shape
    padding = augment.crop_padding

    def pixel(channel: int, y: int, x: int) -> int:
        if augment.padding_mode == "zeros":
            return int(image[channel, y, x]) if 0 <= y < height and 0 <= x < width else 0
        y, x = abs(y), abs(x)
        y, x = height - 1 - abs(height - 1 - y), width - 1 - abs(width - 1 - x)
        return int(image[channel, y, x])

    return [
        torch.tensor(
            [
                [[pixel(c, y + dy, (width - 1 - x if flip else x) + dx) for x in range(width)] for y in range(height)]
                for c in range(channels)
            ],
            dtype=torch.uint8,
        )
        for dy in range(-padding, padding + 1)
        for dx in range(-padding, padding + 1)
        for flip in ([False, True] if augment.flip else [False])
    ]


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 30),
    batch_size=st.integers(1, 32),
    start=st.integers(0, 30),
    epoch=st.integers(0, 5),
    phase=st.integers(0, 2),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    shuffle=st.booleans(),
)
def test_starting_late_continues_the_same_epoch(samples, batch_size, start, epoch, phase, padding, flip, shuffle):
    batches = raw(
        make_split(samples),
        batch_size=batch_size,
        augment=Augment(crop_padding=padding, flip=flip),
        seed=7,
        shuffle=shuffle,
    )
    start = min(start, len(batches))
    whole, rest = list(batches.epoch(epoch, phase)), list(batches.epoch(epoch, phase, start))
    assert len(whole) == len(batches) == -(-samples // batch_size)
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == list(range(samples))
    assert len(rest) == len(whole) - start
    for (images, labels), (later_images, later_labels) in zip(whole[start:], rest, strict=True):
        assert torch.equal(images, later_images)
        assert torch.equal(labels, later_labels)


@settings(max_examples=30, deadline=None)
@given(sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)), padding=st.integers(0, 2), flip=st.booleans())
def test_augmentation_of_a_sample_depends_on_neither_batch_size_nor_order(sizes, padding, flip):
    split, augment = make_split(33), Augment(crop_padding=padding, flip=flip)
    first = raw(split, batch_size=sizes[0], augment=augment, seed=3, shuffle=True)
    other = raw(split, batch_size=sizes[1], augment=augment, seed=3, shuffle=False)
    ours, theirs = by_sample(first, 2, phase=1), by_sample(other, 2, phase=1)
    assert ours.keys() == theirs.keys() == set(range(33))
    assert all(torch.equal(ours[sample], theirs[sample]) for sample in ours)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(flip=True),
        Augment(crop_padding=2),
        Augment(crop_padding=3, padding_mode="zeros", flip=True),
        Augment(crop_padding=2, flip=True),
        Augment(crop_padding=7, padding_mode="zeros"),
    ],
    ids=str,
)
def test_every_augmented_image_is_one_that_the_naive_reference_makes(augment, channels, device):
    split = make_split(24, channels)
    batches = raw(split, batch_size=7, device=device, augment=augment, shuffle=True)
    allowed = [crops(image, augment) for image in split.images]
    seen = set()
    for epoch in range(4):
        for sample, image in by_sample(batches, epoch).items():
            pixels = (image * 255).round().to(torch.uint8)
            matches = [n for n, crop in enumerate(allowed[sample]) if torch.equal(crop, pixels)]
            assert matches, f"sample {sample} in epoch {epoch} is no crop of its image"
            seen.update(matches)
    choices = (2 * augment.crop_padding + 1) ** 2 * (2 if augment.flip else 1)
    assert len(seen) >= min(choices, 25) * 0.9  # really random: 96 draws reach nearly all of the few choices


def test_all_crops_and_both_directions_are_equally_likely():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    split = Split(image.expand(18_000, 1, 5, 5), torch.arange(18_000))
    augment = Augment(crop_padding=1, padding_mode="zeros", flip=True)
    images, _ = next(raw(split, batch_size=18_000, augment=augment, seed=5).epoch(0))
    for crop in crops(image[0], augment):
        hits = ((images * 255).round() == crop).all(dim=(1, 2, 3)).sum()
        assert abs(int(hits) - 1000) < 5 * 31  # 18 choices: 1000 +- 31 expected of each


def test_seed_phase_and_epoch_each_change_order_and_augmentation():
    split, augment = make_split(40), Augment(crop_padding=2, flip=True)

    def draw(seed: int, phase: int, epoch: int) -> tuple[list[int], Tensor]:
        batches = raw(split, batch_size=40, augment=augment, seed=seed, shuffle=True)
        ((images, labels),) = batches.epoch(epoch, phase)
        return labels.tolist(), images[labels.argsort()]

    order, images = draw(0, 0, 0)
    for other in (draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1)):
        assert other[0] != order
        assert not torch.equal(other[1], images)
    again = draw(0, 0, 0)
    assert again[0] == order
    assert torch.equal(again[1], images)


def test_flips_do_not_change_the_crops():
    split = make_split(50)
    crop = by_sample(raw(split, batch_size=8, augment=Augment(crop_padding=2)), 0)
    both = by_sample(raw(split, batch_size=8, augment=Augment(crop_padding=2, flip=True)), 0)
    flipped = [torch.equal(both[n], crop[n].flip(-1)) and not torch.equal(both[n], crop[n]) for n in crop]
    assert all(torch.equal(both[n], crop[n].flip(-1) if flipped[n] else crop[n]) for n in crop)
    assert 10 < sum(flipped) < 40


@pytest.mark.parametrize("device", DEVICES)
def test_without_augmentation_the_arithmetic_is_exact(device):
    split = make_split(20)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    batches = Batches(split, batch_size=6, device=device, mean=mean, std=std)
    images = torch.cat([images for images, _ in batches.epoch(0)])
    shift, scale = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    assert torch.equal(images, (split.images.to(device) / 255 - shift) / scale)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert batches.samples == 20
    assert [len(labels) for _, labels in batches.epoch(0)] == [6, 6, 6, 2]


def test_a_split_that_is_a_view_into_something_larger_is_read_right():
    whole = make_split(30)
    part = Split(whole.images[11:], whole.labels[11:])
    images, labels = next(raw(part, batch_size=19).epoch(0))
    assert torch.equal((images * 255).round().to(torch.uint8), whole.images[11:])
    assert labels.tolist() == list(range(11, 30))
    assert torch.equal(whole.images, make_split(30).images)


def test_the_default_normalisation_is_that_of_the_split():
    split = make_split(500)
    images = torch.cat([images for images, _ in Batches(split, batch_size=128).epoch(0)])
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_channel_statistics_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 51]]], [[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    mean, std = channel_statistics(Split(images, torch.zeros(2, dtype=torch.int64)))
    assert mean == pytest.approx([0.5, 0.25], abs=1e-15)
    assert std == pytest.approx([0.5, 0.0075**0.5], abs=1e-15)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mean": [0.5], "std": [0.5]}, r"mean=\[0.5\] has 1 numbers, but the images have 3"),
        ({"mean": [0.5] * 3, "std": [0.5]}, r"std=\[0.5\] has 1 numbers"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "std=.*positive"),
        ({"mean": [0.5] * 3, "std": [0.5, float("nan"), 0.5]}, "std=.*positive"),
        ({"mean": [0.5] * 3}, "mean=.* and std=None go together"),
        ({"augment": Augment(crop_padding=5)}, "crop_padding=5.*6 x 5"),
    ],
)
def test_what_does_not_fit_is_refused(options, key):
    with pytest.raises(DataError, match=key):
        Batches(make_split(4), **{"batch_size": 2, **options})


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(OptionError, match=r"batch_size=0: must be >= 1"):
        Batches(make_split(4), batch_size=0)


def test_bad_augmentation_and_bad_start_are_refused():
    with pytest.raises(ValueError, match=r"crop_padding=-1: must be in \[0, 1024\]"):
        Augment(crop_padding=-1)
    with pytest.raises(ValueError, match=r"padding_mode=edge: allowed: reflect, zeros"):
        Augment(padding_mode="edge")
    batches = raw(make_split(4), batch_size=2)
    for start in (-1, 3):
        with pytest.raises(DataError, match=f"batch {start}"):
            batches.epoch(0, start=start)  # at the call, not at the first batch
    constant = Split(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(DataError, match=r"std=\[0.0\].*constant"):
        Batches(constant, batch_size=1)
