"""Downloads through torchvision, which knows where data sets are and checks MD5 sums."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dst.files import telling_space


def fetch(dataset: str, root: Path, folder: str, names: Iterable[str]) -> None:
    """Download a set of ``torchvision.datasets`` and put the files ``names`` into ``root``/``folder``.

    The download goes to a temporary folder first: an interrupted one leaves no half file for a later run to trip over,
    and two processes do not write into each other's files. ``OSError``, ``RuntimeError``, ``ImportError`` if it fails.
    """
    from torchvision import datasets  # imported here since it takes 3 s

    root.mkdir(parents=True, exist_ok=True)
    with telling_space(root), tempfile.TemporaryDirectory(dir=root, prefix=".download-") as aside:
        getattr(datasets, dataset)(aside, download=True)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(aside, folder, name), root / folder / name)
