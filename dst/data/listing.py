"""Find the image files of a set, and report everything that looks like an image and is none."""

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dst.data.dataset import DataError
from dst.data.decode import AGAIN, SUFFIXES
from dst.data.files import Entry
from dst.words import some

_LOG = logging.getLogger(__name__)

_NOT_READ = (
    *(".apng", ".avif", ".bmp", ".dib", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jfif"),
    *(".jif", ".jp2", ".jpe", ".jpx", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".tif", ".tiff"),
    ".webp",
)
_PROBLEMS_SHOWN = 20

Folder = tuple[int, int]
"""A folder by device and inode, whatever its path."""


class Listing:
    """The images below ``root``: .jpg, .jpeg and .png. ``finish`` reports what is wrong with any of them.

    Links are followed. Other files and hidden ones are left out; of these, all that look like images are counted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._problems: list[str] = []
        self._gaps: list[str] = []
        self._left_out: Counter[str] = Counter()
        self._example = ""

    def class_folders(self, part: str) -> dict[str, list[Entry]]:
        """Return the images of each class folder of ``root``/``part``, at any depth below it, by its name, all sorted.

        ``finish`` reports if there are no class folders, or no images in one.
        """
        folder = self.root / part
        classes = {}
        for item, about in self._items(part):
            if stat.S_ISDIR(about.st_mode):
                classes[item.name] = self.images_below(f"{part}/{item.name}")
            elif item.name.lower().endswith((*SUFFIXES, *_NOT_READ)):
                self._leave_out("beside the class folders", item.path)
        empty = [name for name, images in classes.items() if not images]
        if not classes:
            self._gaps.append(f"{folder} has no class folders: it must hold a folder of images for each class")
        if empty:
            self._gaps.append(
                f"{folder} has class folders without images ({', '.join(SUFFIXES)}): {some(empty)}. Fill or delete them"
            )
        return classes

    def images_below(self, folder: str, above: Sequence[Folder] | None = None) -> list[Entry]:
        """Return the images of ``root``/``folder``, at any depth. ``above``: itself and the folders it lies in."""
        found: list[Entry] = []
        above = self._above(folder) if above is None else above
        for item, about in self._items(folder):
            name, lower = f"{folder}/{item.name}", item.name.lower()
            looks_readable, here = lower.endswith(SUFFIXES), (about.st_dev, about.st_ino)
            if stat.S_ISDIR(about.st_mode) and here in above:
                self._refuse(item.path, "a link to a folder that it lies in")
            elif stat.S_ISDIR(about.st_mode) and looks_readable:
                self._refuse(item.path, "a folder, although named like an image")
            elif stat.S_ISDIR(about.st_mode):
                found += self.images_below(name, (*above, here))
            elif lower.endswith(_NOT_READ):
                self._leave_out(lower[lower.rindex(".") :], item.path)
            elif looks_readable and not stat.S_ISREG(about.st_mode):
                self._refuse(item.path, "no regular file")
            elif looks_readable and about.st_size == 0:
                self._refuse(item.path, "empty")
            elif looks_readable:
                found.append((name, about.st_size, about.st_ctime_ns))
        return found

    def finish(self) -> None:
        """Warn of files left out; ``DataError`` names missing files, and those that look like images and are none."""
        if self._left_out:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self._left_out.items()))
            _LOG.warning(
                "%s: left out %d files that look like images, since only %s below class folders are read: %s; e.g. %s",
                *(self.root, self._left_out.total(), ", ".join(SUFFIXES), counts, self._example),
            )
            self._left_out.clear()
        if self._problems:
            raise unusable(self._problems)
        if self._gaps:  # after the problems, which may be their cause
            raise DataError("; ".join(self._gaps))

    def _items(self, folder: str) -> list[tuple["os.DirEntry[str]", os.stat_result]]:
        """Return the items in a folder, hidden ones aside, with their status; links are followed."""
        found = []
        try:
            listed = _listed(self.root / folder)
        except OSError as error:
            self._refuse(str(self.root / folder), f"a folder that cannot be read: {error.strerror}")
            return []
        for item in listed:
            if item.name.startswith("."):
                if item.name.lower().endswith((*SUFFIXES, *_NOT_READ)):
                    self._leave_out("hidden", item.path)
                elif item.is_dir(follow_symlinks=False):
                    self._leave_out_below(item.path)
                continue
            try:
                found.append((item, item.stat()))
            except OSError as error:
                self._refuse(item.path, _unreachable(item, error))
        return found

    def _above(self, folder: str) -> list[Folder]:
        place, found = Path(folder), []
        for each in (place, *place.parents):  # the last one is "."
            with suppress(OSError):  # reported when the folder is listed
                about = (self.root / each).stat()
                found.append((about.st_dev, about.st_ino))
        return found

    def _refuse(self, path: str, reason: str) -> None:
        self._problems.append(f"{path} ({reason})")

    def _leave_out_below(self, hidden: str) -> None:
        for folder, _, names in os.walk(hidden):
            for name in names:
                if name.lower().endswith((*SUFFIXES, *_NOT_READ)):
                    self._leave_out("hidden", os.path.join(folder, name))

    def _leave_out(self, kind: str, path: str) -> None:
        self._left_out[kind] += 1
        self._example = self._example or path


def _unreachable(item: "os.DirEntry[str]", error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if item.is_symlink():
        return f"a link to {os.readlink(item.path)}: {error.strerror}"
    return str(error.strerror)


def unusable(problems: Sequence[str]) -> DataError:
    """Return the error that names unusable files, each as ``path (reason)``; if there are very many, the first ones."""
    count = len(problems)
    named = some(problems, _PROBLEMS_SHOWN)
    if count == 1:
        return DataError(f"a path that should be an image cannot be used: {named}; {AGAIN}")
    return DataError(f"{count} paths that should be images cannot be used: {named}; for each: {AGAIN}")


def same_classes(root: Path, train: Mapping[str, object], other: Mapping[str, object], part: str) -> None:
    """Raise DataError if the two parts of a set do not have the same classes."""
    if train.keys() != other.keys():
        only = {"train": sorted(train.keys() - other.keys()), part: sorted(other.keys() - train.keys())}
        told = " and ".join(f"only in {name}: {some(names)}" for name, names in only.items() if names)
        raise DataError(f"{root}: train and {part} must have the same classes, but {told}")


def content(folder: Path) -> str:
    """Return the content of a folder in words, for messages."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        names = [item.name for item in _listed(folder) if not item.name.startswith(".")]
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return f"it has {some(names) or 'nothing'}"


def _listed(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as items:
        return sorted(items, key=lambda item: item.name)
