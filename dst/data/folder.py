"""Sets in folders of images: a folder for each part, and in it a folder for each class."""

import logging
from pathlib import Path

from dst.data.dataset import NotHereError
from dst.data.files import Files
from dst.data.listing import Listing, content, same_classes

_LOG = logging.getLogger(__name__)


def image_folder(root: Path, download: bool) -> tuple[Files, Files, int]:
    """Read ``root``/train and, as test set, ``root``/test, or ``root``/val if there is no test folder.

    Validation data is always split off train. Classes are numbered in the order of their names. ``DataError`` if
    folders are missing or empty, or the two have different classes; nothing can be downloaded.
    """
    return _read(root, "image_folder", ("test", "val"))


def imagenet(root: Path, download: bool) -> tuple[Files, Files, int]:
    """Read ImageNet (ILSVRC 2012) from ``root``/train and, as test set, ``root``/val, both with class folders.

    The original archive of validation images is flat: sort them into class folders first, as is usual.
    """
    return _read(root, "imagenet", ("val",))


def _read(root: Path, name: str, held_out: tuple[str, ...]) -> tuple[Files, Files, int]:
    part = next((part for part in held_out if (root / part).is_dir()), None)
    if part is None or not (root / "train").is_dir():
        raise NotHereError(
            f"{root.absolute()} is no {name}: looked for the folders train and {' or '.join(held_out)}, each with a "
            f"folder of images for each class; {content(root)}. Set root=FOLDER to the one that holds them"
        )
    for other in held_out:
        if other != part and (root / other).is_dir():
            _LOG.warning(
                "%s/%s is left out: %s is the test set, and validation data is split off train", root, other, part
            )
    listing = Listing(root)
    train, test = listing.class_folders("train"), listing.class_folders(part)
    listing.finish()
    same_classes(root, train, test, part)
    return Files.of(root, train.values()), Files.of(root, test.values()), len(train)
