"""Tiny-ImageNet in its original layout."""

from pathlib import Path

from dst.data.dataset import DataError, NotHereError
from dst.data.files import Entry, Files
from dst.data.listing import Listing, content, same_classes

_ARCHIVE = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_ARCHIVE}.zip"
_NEEDED = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")


def tiny_imagenet(root: Path, download: bool) -> tuple[Files, Files, int]:
    """Read Tiny-ImageNet from ``root`` or ``root``/tiny-imagenet-200; the test set is its val part, which has labels.

    (The original test images have no labels.) Validation data is split off train. Classes are the lines of wnids.txt,
    numbered in alphabetical order. ``DataError`` if something is missing or inconsistent; nothing is downloaded.
    """
    found = next((folder for folder in (root, root / _ARCHIVE) if (folder / "wnids.txt").is_file()), None)
    missing = [name for name in _NEEDED if not (found or root).joinpath(name).exists()]
    if found is None or missing:
        raise NotHereError(
            f"{(found or root).absolute()} is not Tiny-ImageNet in its original layout: no {', '.join(missing)}; "
            f"{content(found or root)}. Set root=FOLDER to the one that holds wnids.txt, or {_ARCHIVE}; the "
            f"original is at {_URL}"
        )
    listed: dict[str, list[Entry]] = {name: [] for name in sorted(line.strip() for line in _lines(found / "wnids.txt"))}
    listing = Listing(found)
    train, val = listing.class_folders("train"), listing.images_below("val/images")
    listing.finish()
    same_classes(found, train, listed, "wnids.txt")
    return Files.of(found, train.values()), Files.of(found, _val(found, val, listed)), len(listed)


def _val(root: Path, val: list[Entry], classes: dict[str, list[Entry]]) -> list[list[Entry]]:
    """Sort the validation images into the classes by their annotations: name, class and box, tabs between."""
    annotations = root / "val" / "val_annotations.txt"
    images = {Path(entry[0]).name: entry for entry in val}
    lines = [line.split("\t") for line in _lines(annotations)]
    for line in lines:
        if len(line) < 2 or line[0] not in images or line[1] not in classes:
            raise DataError(
                f"{annotations}: '{' '.join(line[:2])}' is not the name of an image in val/images and a class of "
                "wnids.txt; unpack the original archive again"
            )
        classes[line[1]].append(images.pop(line[0]))
    empty = [name for name, entries in classes.items() if not entries]
    if images or empty:
        raise DataError(
            f"{annotations} leaves out {len(images)} images of val/images ({', '.join(sorted(images)[:3])}) and "
            f"{len(empty)} classes ({', '.join(empty[:3])}); unpack the original archive again"
        )
    return list(classes.values())


def _lines(path: Path) -> list[str]:
    """Return the lines that are not empty; bytes that are no text become characters that no name has."""
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
