"""Batches of image files that are decoded when they are needed, by worker processes ahead of the training.

Workers are told what to do to which sample: they draw no random numbers and normalise nothing. So their number cannot
matter, and the batches are those that ``Batches`` makes of the decoded set, to the last bit.
"""

import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dst.data.augment import Augment, Crops, Draws, draw, resized_crop_box
from dst.data.children import die_with_parent
from dst.data.dataset import DataError
from dst.data.decode import decode
from dst.data.files import Files
from dst.data.normalise import Normalise
from dst.data.prepare import sizes_differ
from dst.data.resize import resized
from dst.data.shard import WHOLE, Shard
from dst.signals import blocked

_REQUESTS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP}

Job = dict[str, list[int]]
"""The fields of ``Draws`` of one batch. As lists, because each tensor would travel in shared memory of its own."""


class _Jobs:
    """What the workers shall do in the epoch that was begun last."""

    now: Iterable[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.now)


class Stream:
    """Image files as normalised batches on ``device``; for its use and its errors see ``Batches``, which it equals.

    ``workers`` processes decode, fit and augment (0: this one does), each two batches ahead; what they make travels to
    a CUDA device asynchronously. Only one epoch can be under way at a time: to begin another ends it.
    """

    def __init__(
        self,
        files: Files,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        shuffle: bool = False,
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: must be at least 1")
        if mean is None or std is None:
            raise DataError(
                f"mean={mean} and std={std}: both are computed only of sets that fit into memory. Give them, e.g. "
                "ImageNet's: mean=[0.485,0.456,0.406] std=[0.229,0.224,0.225]"
            )
        self.samples = len(files)
        """Number of samples of an epoch."""
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._augment = augment or Augment()
        self._augment.check(files.shape)
        self._seed, self._shuffle = seed, shuffle
        self._normalise = Normalise(mean, std, files.shape[0], self.device)
        self._labels = files.labels
        self._jobs = _Jobs()
        # A training split keeps its workers from epoch to epoch; one that is rarely read gives them back.
        pin = self.device.type == "cuda"
        self._loader = _loader(files, self._augment, self._jobs, workers, keep=shuffle, pin=pin)

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def epoch(
        self, epoch: int, phase: int = 0, start: int = 0, shard: Shard = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images float32 [B, C, H, W], labels int64 [B]) from the batch of index ``start`` on.

        The last batch may be smaller. The augmentation of a sample does not depend on the batch it is in. Of each batch
        only a ``shard`` is made; where that is empty, nothing is yielded. ``DataError`` if a file cannot be decoded.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"cannot start at batch {start}: an epoch has batches 0..{len(self) - 1}")
        return self._epoch(epoch, phase, start, shard)

    def _epoch(self, epoch: int, phase: int, start: int, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        draws = draw(self._augment, self.samples, self._seed, epoch, phase, shuffle=self._shuffle)
        batches = list(shard.slices(self.samples, self.batch_size, start))
        labels = self._labels[draws.order].to(self.device)
        self._jobs.now = jobs = (_job(draws, batch) for batch in batches)
        with blocked(_REQUESTS):  # which workers heed, as anybody does, until they are told not to
            made_ahead = iter(self._loader)
        for batch, made in zip(batches, made_ahead, strict=True):
            images = _checked(made).to(self.device, non_blocking=True)
            yield self._normalise(images), labels[batch]
            if self._jobs.now is not jobs:
                raise RuntimeError("another epoch of this stream was begun before this one was over")


def _loader(
    files: Files, augment: Augment, jobs: Iterable[Job], workers: int, *, keep: bool = False, pin: bool = False
) -> "DataLoader[Tensor | DataError]":
    return DataLoader(
        _Pictures(files, augment),
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=keep and workers > 0,
        worker_init_fn=_heed_parent_only,
        generator=torch.Generator(),  # or the loader would draw from the global one, which belongs to the training
    )


def _heed_parent_only(worker: int) -> None:
    """Leave requests to stop, which may be sent to the whole process group, to the main process.

    But it ends its workers by SIGTERM, if all else fails: so that one is not ignored but looked at, in a thread. And
    when it is killed they die with it, at once: they have inherited its open files, among them the lock of the run.
    """
    die_with_parent()
    for number in _REQUESTS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    has_wait = hasattr(signal, "sigwaitinfo")  # not on macOS
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS - {signal.SIGTERM} if has_wait else _REQUESTS)
    if has_wait:
        threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _job(draws: Draws, batch: slice) -> Job:
    columns = {item.name: getattr(draws, item.name) for item in fields(draws)}
    return {name: values[batch].tolist() for name, values in columns.items() if values is not None}


def _checked(made: Tensor | DataError) -> Tensor:
    """Errors come back as values, so that they are told as they are and not as a worker's traceback."""
    if isinstance(made, DataError):
        raise made
    return made


# ---------------------------------------------------------------------------------------------------------------------
# In the workers


class _Pictures(TorchDataset[Tensor | DataError]):
    """Whole batches of augmented images, uint8 [B, C, H, W], by job."""

    def __init__(self, files: Files, augment: Augment) -> None:
        self._files, self._augment = files, augment

    def __getitem__(self, job: Job) -> Tensor | DataError:
        draws = Draws(**{name: torch.tensor(values) for name, values in job.items()})
        try:
            images = self._stacked(job["order"], draws)
        except DataError as error:
            return error
        if draws.rows is None and draws.flips is None:
            return images
        crops = Crops(images, self._augment)
        return crops.take(crops.positions(torch.arange(len(images)), draws), draws.flips).contiguous()

    def _stacked(self, order: list[int], draws: Draws) -> Tensor:
        if draws.seeds is not None:
            cropped = zip(order, draws.seeds.tolist(), strict=True)
            return torch.stack([self._resized_crop(number, seed) for number, seed in cropped])
        images = [self._files.fitted(number) for number in order]
        for number, image in zip(order, images, strict=True):
            if image.shape != images[0].shape:
                raise sizes_differ(self._files, order[0], images[0], number, image)
        return torch.stack(images)

    def _resized_crop(self, number: int, seed: int) -> Tensor:
        image, scale = decode(self._files.path(number)), self._augment.resized_crop_scale
        assert scale is not None
        _, *target = self._files.shape
        top, left, height, width = resized_crop_box(image.shape[1], image.shape[2], scale, seed)
        return resized(image[None, :, top : top + height, left : left + width], *target).squeeze(0)
