"""The real handwritten digits that come with scikit-learn: 1797 images of 8 x 8, no download."""

import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch

from dst.data import published
from dst.data.dataset import DataError, Split
from dst.data.splits import stratified
from dst.seeding import derive_seed

_TEST_FRACTION = 0.2
_LARGEST = 16  # pixels are counts of dark dots, 0..16


def digits(root: Path, download: bool, digest: str | None = None) -> tuple[Split, Split, int]:
    """Read the digits, with a fixed stratified fifth of them as test split; ``root`` and ``download`` are not needed.

    The set has no test part of its own. The one made here depends on no seed, so all runs have the same test set.
    ``DataError`` if the content is not that of ``digest``.
    """
    file, table = _raw()
    sums = {"digits.csv": published.md5(table.astype("<i8").tobytes())}
    if differs := published.difference("digits", sums, digest):
        raise DataError(f"digits: {file}: {differs}. Or install scikit-learn anew")
    values, labels = table[:, :-1], np.ascontiguousarray(table[:, -1])
    pixels = (values * 255 + _LARGEST // 2) // _LARGEST  # rounded in integers: the same anywhere
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 8, 8)
    everything = Split(images, torch.from_numpy(labels))
    rest, test = stratified(everything.labels, _TEST_FRACTION, derive_seed(0, "digits", "test"))
    return everything.select(rest), everything.select(test), 10


def _raw() -> tuple[Path, np.ndarray]:
    """Return the file of the digits and its content: integers [1797, 65], a row for each image, its label last."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("digits: the images come with scikit-learn, which is not here; pip install scikit-learn")
    # Read from the file, since importing scikit-learn takes longer than training on the digits.
    file = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        return file, np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"digits: scikit-learn's file of digits cannot be read: {error}") from error
