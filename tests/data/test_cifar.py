"""CIFAR from made-up files in the original layout, whose sums are taken for the published ones."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from dst.data import published
from dst.data.cifar import cifar10, cifar100
from dst.data.dataset import DataError

PART = np.random.RandomState(0).randint(256, size=(4, 3072), dtype=np.uint8)


def files(coarse: bool) -> dict[str, dict]:
    """Return the content of all files: 4 images in each part, 3 classes."""
    if coarse:
        labels = {"fine_labels": [0, 1, 2, 1], "coarse_labels": [0, 0, 0, 0]}
        meta = {"fine_label_names": ["a", "b", "c"]}
        return {"train": {"data": PART, **labels}, "test": {"data": 255 - PART, **labels}, "meta": meta}
    parts = {f"data_batch_{n}": {"data": PART + n, "labels": [0, 1, 2, n % 3]} for n in range(1, 6)}
    return {**parts, "test_batch": {"data": 255 - PART, "labels": [2, 1, 0, 0]}, "batches.meta": {"label_names": "abc"}}


def write_cifar(root: Path, kind: type) -> Path:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    for name, content in files("100" in kind.__name__).items():
        (folder / name).write_bytes(pickle.dumps(content))
    return folder


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def cifar(request, tmp_path, monkeypatch):
    """Return the reader, torchvision's class, and the root of a good set of it."""
    kind = getattr(datasets, request.param)
    folder = write_cifar(tmp_path / "root", kind)
    read = {"CIFAR10": cifar10, "CIFAR100": cifar100}[request.param]
    sums = {path.name: published.md5(path.read_bytes()) for path in folder.iterdir()}
    for attribute in ("train_list", "test_list"):  # torchvision verifies what it downloads
        monkeypatch.setattr(kind, attribute, [[name, sums[name]] for name, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    monkeypatch.setitem(published.SUMS, read.__name__, sums)
    monkeypatch.setattr(published, "digest", published.digest.__wrapped__)  # it remembers
    return read, kind, tmp_path / "root"


@pytest.mark.parametrize("kind", [datasets.CIFAR10, datasets.CIFAR100])
def test_the_published_sums_are_those_that_torchvision_has(kind):
    known = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    assert published.SUMS[kind.__name__.lower()] == known


def test_the_original_layout_is_read(cifar):
    read, _, root = cifar
    train, test, classes = read(root, download=False)
    assert classes == 3
    first = PART + 1 if read is cifar10 else PART
    assert torch.equal(train.images[:4], torch.from_numpy(first).view(4, 3, 32, 32))
    assert torch.equal(test.images, torch.from_numpy(255 - PART).view(4, 3, 32, 32))
    assert train.labels[:3].tolist() == [0, 1, 2]
    assert len(train) == (20 if read is cifar10 else 4)


def test_a_damaged_file_is_named_and_never_unpickled(cifar, tmp_path):
    read, kind, root = cifar

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    for name in (kind.train_list[0][0], kind.meta["filename"]):
        path = root / kind.base_folder / name
        good = path.read_bytes()
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(DataError, match=rf"{kind.base_folder}: .*not the original: {name} \(MD5.*fetch again"):
            read(root, download=True)
        path.write_bytes(good)
    assert not (tmp_path / "sprung").exists()


def test_missing_files_are_named_and_fetched_if_allowed(cifar, monkeypatch):
    read, kind, root = cifar
    name = kind.test_list[0][0]
    (root / kind.base_folder / name).unlink()
    with pytest.raises(DataError, match=rf"not complete: {name} not found.*download=False.*root="):
        read(root, download=False)

    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\nnetwork")

    with monkeypatch.context() as patched:
        patched.setattr(kind, "download", offline)
        with pytest.raises(DataError, match="downloading failed: no network"):
            read(root, download=True)
    assert os.listdir(root) == [kind.base_folder]
    monkeypatch.setattr(kind, "download", lambda self: write_cifar(Path(self.root), kind))
    assert len(read(root, download=True)[1]) == 4


def test_a_variant_is_read_if_its_digest_asks_for_it(cifar):
    read, kind, root = cifar
    path = root / kind.base_folder / kind.test_list[0][0]
    content = pickle.loads(path.read_bytes())
    content["data"] = np.zeros_like(content["data"])
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=rf"{path.name} \(MD5 sum .*, published .*\).*digest=") as caught:
        read(root, download=False)
    (digest,) = re.findall("digest=([0-9a-f]{64})", str(caught.value))
    train, test, _ = read(root, download=False, digest=digest)
    assert test.images.max() == 0
    assert train.images.max() > 0
    (root / kind.base_folder / kind.meta["filename"]).write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match=f"its content has the digest [0-9a-f]{{64}}, but digest={digest}"):
        read(root, download=False, digest=digest)


def test_a_variant_in_another_layout_is_refused(cifar):
    read, kind, root = cifar
    (root / kind.base_folder / kind.meta["filename"]).write_bytes(pickle.dumps({}))
    sums = {
        name: published.md5((root / kind.base_folder / name).read_bytes()) for name in published.SUMS[read.__name__]
    }
    with pytest.raises(DataError, match=rf"{kind.base_folder} is not in the layout of the original files \(KeyError"):
        read(root, download=False, digest=published.digest_of(sums))
