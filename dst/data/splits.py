"""Stratified splits that never change: neither with the seed of a run nor with the versions of the libraries.

The size of a part is ``round(fraction * N)`` of floats: a product that should be exactly half a sample may round to
either side. It stays so, since an exact one would change splits of recorded runs. The shares of classes are exact.
"""

import numpy as np
import torch
from torch import Tensor

from dst.data.dataset import DataError
from dst.data.options import ValFraction
from dst.options import checked
from dst.seeding import derive_seed


@checked
def train_val_split(labels: Tensor, fraction: ValFraction, split_seed: int) -> tuple[Tensor, Tensor]:
    """Return the sorted indices (int64) of the training and of the validation part.

    A pure function of ``labels`` (int64 [N]), ``fraction`` and ``split_seed``. The validation part has
    round(``fraction`` * N) samples, shared among the classes in proportion (largest remainder), but each class has at
    least one sample in each part; ``DataError`` if that is impossible. With a fraction of zero it has no sample at all.
    """
    if fraction == 0:
        everything = torch.arange(len(labels))
        return everything, everything[:0]
    try:
        return stratified(labels, fraction, derive_seed(split_seed, "validation"))
    except DataError as error:
        raise DataError(f"fraction={fraction}: {error}") from None


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return sorted indices: of the rest, and of a stratified random part of round(``fraction`` * N) samples."""
    classes = labels.cpu().numpy()
    _, counts = np.unique(classes, return_counts=True)
    shares = _shares(counts, round(fraction * len(classes)))
    # RandomState, since numpy promises that its stream never changes; torch's may.
    order = np.random.RandomState([seed >> 32, seed & 0xFFFFFFFF]).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]  # class after class, shuffled within each
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(classes), dtype=bool)
    chosen[order[rank < np.repeat(shares, counts)]] = True
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Share ``total`` in proportion to ``counts``, by largest remainder, with 1 <= share < count."""
    samples, fewest = int(counts.sum()), int(counts.min())
    if fewest < 2 or not len(counts) <= total <= samples - len(counts):
        raise DataError(
            f"{total} of {samples} samples cannot be split off so that each of the {len(counts)} classes (the smallest "
            f"has {fewest}) is in both parts; take a fraction nearer to 0.5 or more data"
        )
    exact = counts.astype(np.int64) * total  # in units of 1 / samples, so that remainders and their ties are exact
    shares = np.clip(exact // samples, 1, counts - 1)
    while gap := total - int(shares.sum()):
        step = 1 if gap > 0 else -1
        has_room = shares < counts - 1 if gap > 0 else shares > 1
        owed = np.where(has_room, (exact - shares * samples) * step, np.iinfo(np.int64).min)
        shares[owed.argmax()] += step
    return shares
