"""Decode every file of a set before anything trains on it, in processes that may crash."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dst.data.children import Answer, Work, in_children
from dst.data.dataset import DataError, Split
from dst.data.decode import load_decoders, pixels
from dst.data.files import Files, file_keys
from dst.data.listing import unusable
from dst.files import replacing, write_or_keep
from dst.words import some

_LOG = logging.getLogger(__name__)

_TOLD_EVERY_S = 30.0  # where there is no terminal to show a bar
_KEPT_EVERY_S = 60.0
_MOST_REMEMBERED = 1 << 23  # files: 64 MiB, some ImageNets


def decode_all(files: Files, title: str) -> Split:
    """Decode and resize all files, on all processors, and show the progress.

    Raises ``DataError`` that names all files that cannot be decoded, or two whose images have different sizes.
    """

    def resized(number: int) -> np.ndarray:
        made: np.ndarray = files.resize(pixels(files.path(number)).unsqueeze(0)).squeeze(0).numpy()
        return made

    images: Tensor | None = None
    first = -1
    for answer in _decoded(files, range(len(files)), resized, f"{title}: decoding"):
        image = torch.from_numpy(answer.result)
        if images is None:
            images, first = torch.empty((len(files), *image.shape), dtype=torch.uint8), answer.number
        if image.shape != images.shape[1:]:
            raise sizes_differ(files, first, images[first], answer.number, image)
        images[answer.number] = image
    assert images is not None
    return Split(images, files.labels)


def sizes_differ(files: Files, one: int, image: Tensor, other: int, other_image: Tensor) -> DataError:
    """Return the error that names two files whose images have different sizes."""
    sizes = [f"{files.path(n)} is {i.shape[1]} x {i.shape[2]}" for n, i in ((one, image), (other, other_image))]
    return DataError(f"images have different sizes: {', '.join(sizes)}. Bring them to one, e.g. size={image.shape[-1]}")


def verify(files: Files, key: str, memory: Path, title: str) -> None:
    """Decode all files once, on all processors, and show the progress; ``DataError`` names all that fail.

    ``key``: the key of the set, in hex. ``memory``: a file that remembers files that were decoded before, by names,
    sizes and times of change; they are not decoded again.
    """
    known, whole = _remembered(memory), np.array([int(key[:16], 16)], dtype=np.uint64)
    if whole in known:
        return
    keys, good, kept = file_keys(files), [], time.monotonic()
    todo = np.flatnonzero(~np.isin(keys, known)).tolist()

    def checked(number: int) -> None:
        pixels(files.path(number))

    try:
        for answer in _decoded(files, todo, checked, f"{title}: verifying"):
            good.append(answer.number)
            if time.monotonic() - kept > _KEPT_EVERY_S:
                _remember(memory, known, keys[good])
                kept = time.monotonic()
    except BaseException:
        write_or_keep(partial(_remember, memory, known, keys[good]))
        raise
    write_or_keep(partial(_remember, memory, known, keys[good], whole))


def _decoded(files: Files, numbers: Sequence[int], work: Work, title: str) -> Iterator[Answer]:
    """Yield the answers for files that can be decoded; at the end raise ``DataError`` that names all others."""
    load_decoders()
    problems: dict[int, str] = {}
    remarks: dict[int, str] = {}
    with closing(in_children(work, numbers)) as answers:
        for answer in _shown(answers, len(numbers), title):
            if answer.failure is not None:
                problems[answer.number] = answer.failure
                continue
            if answer.said:
                remarks[answer.number] = answer.said
            yield answer
    if remarks:
        _LOG.warning(
            "%s: the decoder finds fault with %d of the images but can decode them; they are used: %s",
            *(title, len(remarks), some(_named(files, remarks))),
        )
    if problems:
        raise unusable(_named(files, problems))


def _named(files: Files, reasons: dict[int, str]) -> list[str]:
    return [f"{files.path(number)} ({reason})" for number, reason in sorted(reasons.items())]


def _shown(answers: Iterator[Answer], total: int, title: str) -> Iterator[Answer]:
    """Pass the answers on and show the progress: as a bar on a terminal, otherwise as a line now and then."""
    begun = told = time.monotonic()
    with tqdm(total=total, desc=title, unit="image", disable=None, leave=False) as bar:
        for done, answer in enumerate(answers, start=1):
            bar.update()
            if bar.disable and time.monotonic() - told > _TOLD_EVERY_S:
                told = time.monotonic()
                rate = done / (told - begun)
                left = (total - done) / rate / 60
                with suppress(OSError, ValueError):  # nothing may read it any more
                    text = f"{title}: {done:,} of {total:,} images, {rate:,.0f} images/s, {left:.0f} min left"
                    print(text, file=sys.stderr, flush=True)
            yield answer


# ---------------------------------------------------------------------------------------------------------------------
# The memory: eight bytes for each decoded file, and eight for each set that was decoded as a whole


def _remembered(memory: Path) -> np.ndarray:
    try:
        data = memory.read_bytes()
    except OSError:
        return np.empty(0, dtype=np.uint64)
    return np.frombuffer(data[: len(data) // 8 * 8], dtype=np.uint64)


def _remember(memory: Path, *keys: np.ndarray) -> None:
    """Replace the memory by these keys; the last ones are the newest and stay longest."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory, durable=False) as (file,):
            file.write(np.concatenate(keys)[-_MOST_REMEMBERED:].data)  # tofile() hides why it cannot write
    except OSError as error:
        _LOG.warning("cannot remember in %s what was verified (%s): it will be verified again", memory, error)
