"""Downloads through torchvision, which knows where data sets are and checks MD5 sums."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def fetch(dataset: str, root: Path, folder: str, names: Iterable[str]) -> None:
    """Download a set of ``torchvision.datasets`` and put the files ``names`` into ``root``/``folder``.

    Into a folder aside first: an interrupted download leaves no half a file behind that a later run would trip over,
    and two processes do not write into each other's files. ``OSError``, ``RuntimeError``, ``ImportError`` if it fails.
    """
    from torchvision import datasets  # 3 s to import: only when something must be downloaded

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as aside:
        getattr(datasets, dataset)(aside, download=True)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(aside, folder, name), root / folder / name)
