"""The raw sources: digits from scikit-learn, MNIST and Fashion-MNIST from idx files."""

import gzip
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from dst import registry
from dst.config import checks, identity
from dst.data.cache import load
from dst.data.dataset import DataError, Dataset
from dst.data.mnist import fashion_mnist, mnist
from tests.composed import compose_cells

FILES = {"train-images-idx3-ubyte": 12, "train-labels-idx1-ubyte": 12, "t10k-images-idx3-ubyte": 5}
CONF = Path(__file__).parents[2] / "conf"


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data


def write_raw(root: Path, dataset: str = "MNIST", zipped: bool = False) -> Path:
    """Write 12 training and 5 test images of 2 x 3 pixels; pixel p of image n is 10 n + p, its label n mod 10."""
    folder = root / dataset / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 5)):
        pixels = bytes(10 * n + p for n in range(count) for p in range(6))
        labels = bytes(n % 10 for n in range(count))
        contents = {"images-idx3": idx((count, 2, 3), pixels), "labels-idx1": idx((count,), labels)}
        for kind, content in contents.items():
            path = folder / f"{part}-{kind}-ubyte"
            if zipped:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


def digits(tmp_path: Path) -> Dataset:
    reader = registry.find("data", "digits").load()
    return load("digits", reader, root="", cache=str(tmp_path), download=False, size=None)


# ---------------------------------------------------------------------------------------------------------------------
# Digits


def test_digits_are_the_real_ones(tmp_path):
    dataset = digits(tmp_path)
    assert dataset.shape == (1, 8, 8)
    assert dataset.classes == 10
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    assert dataset.digest == DIGITS_DIGEST  # a constant: no seed, machine or version may change the data
    everything = torch.cat([dataset.train.labels, dataset.test.labels])
    assert torch.bincount(everything).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    shares = torch.bincount(dataset.test.labels) / torch.bincount(everything)
    assert (shares - 0.2).abs().max() < 1 / 174
    expected = {int(value * 255 / 16 + 0.5) for value in range(17)}
    assert set(dataset.train.images.unique().tolist()) == expected


DIGITS_DIGEST = "e892ceec3a88d14ce5a6ac300b6d9ea06976e14b682eac164f02832c9a3764f6"


def test_every_digit_is_in_exactly_one_part(tmp_path):
    from sklearn.datasets import load_digits

    dataset = digits(tmp_path)
    ours = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).double() * 16 / 255
    values, _ = load_digits(return_X_y=True)
    assert sorted(ours.round().tolist()) == sorted(values.tolist())


def test_a_start_imports_neither_sklearn_nor_torchvision(tmp_path):
    """The raw files of both sets are read without them, which take seconds to import."""
    root, cache = tmp_path / "raw", tmp_path / "cache"
    write_raw(root)
    code = (
        "import sys\n"
        "from dst import registry\nfrom dst.data.cache import load\n"
        "for name in ('digits', 'mnist'):\n"
        "    read = registry.find('data', name).load()\n"
        f"    load(name, read, root={str(root)!r}, cache={str(cache)!r}, download=True)\n"
        "print(*sorted({'sklearn', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("locations", [None, ["/nowhere"]])
def test_digits_without_sklearn_say_what_is_missing(monkeypatch, tmp_path, locations):
    spec = None if locations is None else types.SimpleNamespace(submodule_search_locations=locations)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    told = "pip install scikit-learn" if locations is None else "/nowhere/datasets/data/digits.csv.gz"
    with pytest.raises(DataError, match=told):
        digits(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# MNIST and Fashion-MNIST


@pytest.mark.parametrize(("reader", "folder"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_decoded(tmp_path, reader, folder, zipped):
    write_raw(tmp_path, folder, zipped)
    train, test, classes = reader(tmp_path, download=False)
    assert train.images.shape == (12, 1, 2, 3)
    assert test.images.shape == (5, 1, 2, 3)
    assert train.images[11].tolist() == [[[110, 111, 112], [113, 114, 115]]]
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert test.labels.tolist() == [0, 1, 2, 3, 4]
    assert classes == 10


def test_missing_files_are_named_with_their_folder_and_the_remedy(tmp_path):
    folder = write_raw(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        mnist(tmp_path, download=False)
    message = str(caught.value)
    for part in (str(folder), "t10k-labels-idx1-ubyte", "root=", "download=True", "download=False"):
        assert part in message
    assert "train-images" not in message


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-1], "87 bytes, 88 expected for 12 x 2 x 3"),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "89 bytes, 88 expected"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "9 bytes"),
        ("train-images-idx3-ubyte", lambda data: b"", "starts with b''"),
        ("t10k-images-idx3-ubyte", lambda data: b"<htm" + data[4:], "starts with b'<htm'"),
        ("t10k-images-idx3-ubyte", lambda data: idx((5,), b"01234"), "3-d"),
        ("t10k-images-idx3-ubyte", lambda data: idx((0, 2, 3), b""), "0 x 2 x 3"),
        ("t10k-labels-idx1-ubyte", lambda data: data[:-1], "12 bytes, 13 expected for 5"),
        ("t10k-labels-idx1-ubyte", lambda data: idx((4,), bytes(4)), "5 images.*4 labels"),
        ("t10k-labels-idx1-ubyte", lambda data: data[:-1] + b"\n", "a label 10"),
    ],
)
def test_damaged_files_are_refused_and_named(tmp_path, name, damage, message):
    path = write_raw(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        mnist(tmp_path, download=False)
    assert str(path) in str(caught.value)
    assert "fetch" in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-6] + b"?" + data[-5:], lambda _: b"no"])
def test_damaged_gz_files_are_refused_and_named(tmp_path, damage):
    path = write_raw(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cannot read") as caught:
        mnist(tmp_path, download=False)
    assert str(path) in str(caught.value)


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, download) -> None:
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=download, FashionMNIST=download)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_missing_files_are_downloaded_if_allowed(tmp_path, monkeypatch):
    fake_torchvision(monkeypatch, lambda root, download: write_raw(Path(root), "FashionMNIST"))
    train, _, _ = fashion_mnist(tmp_path / "root", download=True)
    assert len(train) == 12
    assert sorted(os.listdir(tmp_path / "root")) == ["FashionMNIST"]  # nothing left of the download
    assert len(os.listdir(tmp_path / "root" / "FashionMNIST" / "raw")) == 4


def test_a_failed_download_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def offline(root: str, download: bool) -> None:
        (write_raw(Path(root)) / "t10k-labels-idx1-ubyte").unlink()
        raise RuntimeError("Error downloading t10k-labels-idx1-ubyte.gz:\nTried a mirror")

    fake_torchvision(monkeypatch, offline)
    with pytest.raises(DataError, match=r"downloading failed: Error downloading t10k.*root=") as caught:
        mnist(tmp_path, download=True)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# The config options


@pytest.mark.parametrize("name", registry.members("data"))
def test_each_data_set_has_a_config_option_that_fits_the_schema(name):
    assert (CONF / "data" / f"{name}.yaml").read_text().startswith("# ")  # its line in --help
    ((_, composed),) = compose_cells(CONF, [f"data={name}"], multirun=False)
    assert composed.data.name == name
    assert checks.check(composed) == []


def problems(*overrides: str) -> str:
    ((_, composed),) = compose_cells(CONF, overrides, multirun=False)
    return "\n".join(checks.check(composed))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.center_crop=0.875"], "data.center_crop=0.875: needs data.size, which is null"),
        (["data.center_crop=1.2", "data.size=8"], "data.center_crop=1.2: must be in (0, 1]"),
        (["data.storage=disk"], "data.storage=disk: allowed: auto, resident, stream"),
        (["data=imagenet", "data.storage=resident"], "set data.storage=auto, or data.augment.resized_crop_scale=null"),
        (
            ["data=imagenet", "data.size=null", "data.center_crop=null"],
            "data.augment.resized_crop_scale=[0.08, 1.0]: needs data.size, which is null",
        ),
        (
            ["data=imagenet", "data.augment.crop_padding=4"],
            "resized_crop_scale=[0.08, 1.0]: does not go with data.augment.crop_padding=4",
        ),
        (
            ["data=imagenet", "data.augment.resized_crop_scale=[0.5]"],
            "must be a list of 2, each in (0, 1], not decreasing",
        ),
        (
            ["data=imagenet", "data.augment.resized_crop_scale=[0.5,0.2]"],
            "must be a list of 2, each in (0, 1], not decreasing",
        ),
        (
            ["data=imagenet", "data.augment.resized_crop_scale=[0,1]"],
            "must be a list of 2, each in (0, 1], not decreasing",
        ),
    ],
)
def test_options_of_data_that_do_not_fit_together_are_told(overrides, message):
    assert message in problems(*overrides)


def test_where_images_are_kept_makes_no_other_run():
    (_, one), (_, other) = compose_cells(CONF, ["data=image_folder", "data.storage=auto,stream"], multirun=True)
    assert identity.run_id(one) == identity.run_id(other)
