"""The real handwritten digits that come with scikit-learn: 1797 images of 8 x 8, no download."""

from pathlib import Path

import numpy as np
import torch

from dst.data.dataset import DataError, Split
from dst.data.splits import stratified
from dst.seeding import derive_seed

_TEST_FRACTION = 0.2
_LARGEST = 16  # pixels are counts of dark dots, 0..16


def digits(root: Path, download: bool) -> tuple[Split, Split, int]:
    """Read the digits, with a fixed stratified fifth of them as test split; ``root`` and ``download`` are not needed.

    The set has no test part of its own. The one made here depends on no seed, so all runs are tested alike.
    """
    try:
        from sklearn.datasets import load_digits  # 1 s to import: only when there is no cache
    except ImportError as error:
        raise DataError(
            f"data.name=digits: the images come with scikit-learn, which cannot be imported ({error}); "
            "pip install scikit-learn"
        ) from error
    values, labels = load_digits(return_X_y=True)
    pixels = (values.astype(np.int64) * 255 + _LARGEST // 2) // _LARGEST  # rounded in integers: the same anywhere
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 8, 8)
    everything = Split(images, torch.from_numpy(labels.astype(np.int64)))
    rest, test = stratified(everything.labels, _TEST_FRACTION, derive_seed(0, "digits", "test"))
    return everything.select(rest), everything.select(test), 10
