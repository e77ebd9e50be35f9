"""Batches of image files that worker processes decode when they are needed, ahead of the training.

Workers get a list of samples with the numbers of their augmentation: they draw no random numbers and normalise nothing.
So their number does not matter, and the batches equal those that ``Batches`` makes of the decoded set, to the last bit.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from multiprocessing import active_children
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dst.data.augment import Augment, Crops, Draws, resized_crop_box
from dst.data.dataset import DataError
from dst.data.decode import decode
from dst.data.epochs import Epochs
from dst.data.files import Files
from dst.data.normalise import Normalise
from dst.data.prepare import sizes_differ
from dst.data.resize import resized
from dst.signals import REQUESTS, StalledError, blocked, die_with_parent, waiting

Job = dict[str, list[int]]
"""The fields of ``Draws`` of one batch. As lists, because each tensor would travel in shared memory of its own."""


_REAPED_S = 0.2
"""How long to wait for the exit code of a worker that has just died."""


class _Jobs:
    """The jobs of the workers in the epoch that was begun last."""

    now: Iterable[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.now)


class Stream(Epochs):
    """Image files as batches, equal to those that ``Batches`` makes of the decoded files.

    ``workers`` processes decode, resize and augment, each two batches ahead; with 0 this process does. Batches travel
    to a CUDA device asynchronously. Only one epoch can be under way at a time: to begin another ends it, which it may
    once its last batch has been given. ``mean`` and ``std`` have no default. ``options``: see ``Epochs``.
    """

    def __init__(
        self,
        files: Files,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        workers: int = 0,
        **options: Any,
    ) -> None:
        if mean is None or std is None:
            raise DataError(
                f"mean={mean} and std={std}: both are computed only of sets that fit into memory. Give them, e.g. "
                "ImageNet's: mean=[0.485,0.456,0.406] std=[0.229,0.224,0.225]"
            )
        super().__init__(files, **options)
        self._normalise = Normalise(mean, std, files.shape[0], self.device)
        self._labels = files.labels
        self._jobs = _Jobs()
        # A training split, which is shuffled, keeps its workers from epoch to epoch; others are rarely read.
        keep, pin = options.get("shuffle", False), self.device.type == "cuda"
        self._loader = _loader(files, self._augment, self._jobs, workers, keep=keep, pin=pin)
        self._has_workers = False

    def _batches(self, draws: Draws, parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches as the workers make them."""
        labels = self._labels[draws.order].to(self.device)
        self._jobs.now = jobs = (_job(draws, batch) for batch in parts)
        made_ahead = self._begun()
        for batch in parts:
            images = _checked(_next(made_ahead)).to(self.device, non_blocking=True)
            yield self._normalise(images), labels[batch]
            if self._jobs.now is not jobs:
                if batch == parts[-1]:  # all of it has been given
                    return
                raise RuntimeError("another epoch of this stream was begun before this one was over")
        next(made_ahead, None)  # there is none: the loader learns that the epoch is over

    def _begun(self) -> "Iterator[Tensor | DataError]":
        """Let the workers begin an epoch. Their deaths are seen where a batch is awaited, and nowhere else.

        Torch's handler of SIGCHLD would raise wherever this process is then, also where it records its end.
        """
        before = signal.getsignal(signal.SIGCHLD)
        with waiting() if self._has_workers else blocked(REQUESTS):  # new ones would heed these until they ignore them
            made_ahead = iter(self._loader)
        if signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
        self._has_workers = self._loader.persistent_workers
        return made_ahead


def _next(made_ahead: "Iterator[Tensor | DataError]") -> Tensor | DataError:
    """Return the next batch; ChildProcessError if a worker died, StalledError if none comes and a stop is requested."""
    try:
        with waiting():
            return next(made_ahead)
    except StalledError:
        for child in active_children():  # to end them nicely would take as long again
            child.kill()
        raise
    except (RuntimeError, OSError, EOFError) as error:  # all but the first in the midst of a batch
        workers = getattr(made_ahead, "_workers", [])
        for worker in workers:
            worker.join(_REAPED_S)
        dead = [worker for worker in workers if worker.exitcode]
        if not dead:
            raise
        told = ", ".join(f"{worker.pid} ({_end(worker.exitcode)})" for worker in dead)
        raise ChildProcessError(f"a process that loads images died: {told}") from error


def _end(code: int) -> str:
    """Return how a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    hint = "; was the memory too small?" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


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
        generator=torch.Generator(),  # else the loader would draw from the global one, which belongs to the training
    )


def _heed_parent_only(worker: int) -> None:
    """Let a worker ignore requests to stop, which may go to the whole process group: the main process handles them.

    The main process ends its workers by SIGTERM if all else fails, so a thread waits for one from there. When the main
    process is killed its workers die at once, since they hold its open files, among them the lock of the run.
    """
    die_with_parent()
    ignored = set(REQUESTS) - {signal.SIGTERM}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    has_wait = hasattr(signal, "sigwaitinfo")  # not on macOS
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored if has_wait else REQUESTS)
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
    """Return the images, or raise the error: it comes as a value, so that no worker's traceback surrounds it."""
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
        images = [self._files.resized(number) for number in order]
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
