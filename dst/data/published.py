"""Data sets whose name fixes their content: the published sums of their files. Standard library only.

The sums are MD5 since these are published: by torchvision for CIFAR's files, and by many users for the unpacked files
of MNIST and Fashion-MNIST (torchvision has the sums of the packed ones). They reveal damage and variants; they do not
protect against a file that is forged on purpose.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Final

from dst.files import sha256

SUMS: Final[dict[str, dict[str, str]]] = {
    "digits": {"digits.csv": "0f100a697ec618c4a93d17d559e0c52f"},
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}
"""Data set -> the MD5 sum of each of its unpacked files; for ``digits``, of the numbers as little-endian int64."""


def md5(content: bytes) -> str:
    """Return the sum of a file's content, in the form of ``SUMS``."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def digest_of(sums: Mapping[str, str]) -> str:
    """Return the digest of a set of files with these sums: SHA-256 of what ``md5sum`` prints, sorted by name."""
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    return sha256(lines)


@cache
def digest(name: str) -> str | None:
    """Return the digest of the published content of a data set; None if its name does not fix its content."""
    return digest_of(SUMS[name]) if name in SUMS else None


def difference(name: str, sums: Mapping[str, str], wanted: str | None) -> str | None:
    """Return in words how the files of a data set differ from the wanted content; None if they do not.

    ``sums``: the sums of its files; ``wanted``: the digest of the wanted content, None if any will do.
    """
    found = digest_of(sums)
    if wanted in (None, found):
        return None
    if found == digest(name):
        return f"it is the original, but digest={wanted} asks for another content; leave that out"
    variant = f"if this content is what you mean, add digest={found}, which makes it another run"
    if wanted != digest(name):
        return f"its content has the digest {found}, but digest={wanted}; {variant}"
    published = SUMS[name]
    differing = [file for file in sums if sums[file] != published[file]]
    told = ", ".join(f"{file} (MD5 sum {sums[file]}, published {published[file]})" for file in differing)
    return f"damaged, or not the original: {told}; {variant}"
