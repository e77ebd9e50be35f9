"""Sets of image files: what is found, what is refused, and how they are kept decoded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import ImageReadMode, decode_image

from dst.data import cache as cache_module
from dst.data.cache import load
from dst.data.dataset import DataError, Dataset, Split
from dst.data.files import Files
from dst.data.folder import image_folder, imagenet
from dst.data.prepare import decode_all
from dst.data.resize import Resize
from dst.data.tiny_imagenet import tiny_imagenet
from tests.data.pictures import picture, write, write_folder, write_tiny_imagenet

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


def prepare(tmp_path: Path, read=image_folder, **options) -> Dataset:
    return load(
        read.__name__, read, root=str(tmp_path / "set"), cache=str(tmp_path / "cache"), download=False, **options
    )


def decoded(path: Path) -> torch.Tensor:
    return decode_image(str(path), mode=ImageReadMode.RGB)


# ---------------------------------------------------------------------------------------------------------------------
# What is found


@pytest.mark.parametrize("storage", ["resident", "auto"])
def test_an_image_folder_is_decoded_with_labels_in_the_order_of_names(tmp_path, storage):
    root = write_folder(tmp_path / "set", {"train": 3, "test": 2}, classes=3)
    dataset = prepare(tmp_path, storage=storage)
    assert isinstance(dataset.train, Split)
    assert (dataset.classes, dataset.shape) == (3, (3, 12, 12))
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for n, image in enumerate(dataset.train.images):
        assert torch.equal(image, decoded(root / "train" / f"class_{n // 3}" / f"{n % 3}.jpg"))


def test_the_test_folder_is_preferred_and_val_taken_without_it(tmp_path):
    root = write_folder(tmp_path, {"train": 1, "val": 2, "test": 3})
    assert len(image_folder(root, False)[1]) == 6
    assert len(imagenet(root, False)[1]) == 4
    (root / "test").rename(root / "elsewhere")
    assert len(image_folder(root, False)[1]) == 4


def test_pictures_lie_at_any_depth_and_other_files_are_passed_over(tmp_path):
    root = write_folder(tmp_path, {"train": 1, "test": 1})
    write(root / "train" / "class_0" / "deep" / "er" / "9.PNG", picture(7))
    write(root / "train" / "class_0" / "8.JPEG", picture(8))
    write(root / "train" / "class_0" / ".hidden.jpg", picture(8))
    (root / "train" / "class_0" / "notes.txt").write_text("")
    (root / "train" / "notes.txt").write_text("")
    train, _, _ = image_folder(root, False)
    assert [train.path(n).name for n in range(len(train))] == ["0.jpg", "8.JPEG", "9.PNG", "0.jpg"]
    assert train.labels.tolist() == [0, 0, 0, 1]


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    grey = picture(1, channels=1)
    write(tmp_path / "set" / "train" / "a" / "0.png", grey)
    write(tmp_path / "set" / "train" / "a" / "1.png", picture(2))
    write(tmp_path / "set" / "test" / "a" / "0.png", picture(3))
    dataset = prepare(tmp_path)
    assert torch.equal(dataset.train.images, torch.stack([grey.expand(3, 12, 12), picture(2)]))


def test_tiny_imagenet_in_its_original_layout(tmp_path):
    root = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    for folder in (root, tmp_path):
        train, test, classes = tiny_imagenet(folder, False)
        assert classes == 3
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # n01, n02, n03
        assert train.path(0).name == "n01_0.JPEG"
        assert {test.path(n).name: int(test.labels[n]) for n in range(len(test))} == {
            "val_0.JPEG": 2,
            "val_1.JPEG": 0,
            "val_2.JPEG": 1,
            "val_3.JPEG": 2,
            "val_4.JPEG": 0,
            "val_5.JPEG": 1,
        }


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_a_wrong_folder_is_told_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "set" / "training").mkdir(parents=True)
    with pytest.raises(DataError, match=r"looked for the folders train and test or val.*it has training.*root="):
        prepare(tmp_path)
    with pytest.raises(DataError, match=r"looked for the folders train and val,.*root="):
        prepare(tmp_path, imagenet)
    with pytest.raises(DataError, match=r"no wnids\.txt, train.*root=.*tiny-imagenet-200\.zip"):
        prepare(tmp_path, tiny_imagenet)
    with pytest.raises(DataError, match="there is no such folder"):
        image_folder(tmp_path / "nowhere", False)


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_a_class_folder_without_pictures_is_named(tmp_path, storage):
    write_folder(tmp_path / "set", {"train": 1, "test": 1})
    (tmp_path / "set" / "train" / "class_9").mkdir()
    with pytest.raises(DataError, match=r"train has class folders without images.*: class_9"):
        prepare(tmp_path, size=8, storage=storage)
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "test").mkdir()
    with pytest.raises(DataError, match="train has no class folders"):
        image_folder(tmp_path / "other", False)


def test_different_classes_in_train_and_val_are_named(tmp_path):
    write_folder(tmp_path / "set", {"train": 1, "val": 1}, classes=3)
    (tmp_path / "set" / "val" / "class_1").rename(tmp_path / "set" / "val" / "class_7")
    with pytest.raises(DataError, match="only in train: class_1 and only in val: class_7"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val_1.JPEG", "val_9.JPEG", r"'val_9.JPEG n01' is not the name of an image"),
        ("n01", "n09", r"'val_1.JPEG n09' is not the name of an image.* and a class"),
        ("val_1.JPEG\tn01\t0\t0\t9\t9\n", "", r"leaves out 1 images of val/images \(val_1.JPEG\)"),
        ("\tn01\t", "\tn02\t", r"and 1 classes \(n01\)"),
    ],
)
def test_tiny_imagenet_annotations_that_do_not_fit_are_refused(tmp_path, old, new, message):
    path = write_tiny_imagenet(tmp_path) / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        tiny_imagenet(tmp_path, False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("wnids.txt", "only in train: n01"), ("val/val_annotations.txt", "not the")]
)
def test_tiny_imagenet_with_bytes_instead_of_text_is_refused_by_name(tmp_path, name, message):
    (write_tiny_imagenet(tmp_path) / name).write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match=message) as caught:
        tiny_imagenet(tmp_path, False)
    assert Path(name).name in str(caught.value)


def test_tiny_imagenet_with_other_classes_than_listed_is_refused(tmp_path):
    (write_tiny_imagenet(tmp_path) / "wnids.txt").write_text("n01\nn02\nn05\n")
    with pytest.raises(DataError, match=r"only in train: n03 and only in wnids.txt: n05"):
        tiny_imagenet(tmp_path, False)


DAMAGES = {
    "truncated": lambda data: data[: len(data) * 2 // 3],
    "empty": lambda data: b"",
    "text": lambda data: b"<html>not found</html>",
}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("storage", ["resident", "stream"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_found_before_training_and_named(tmp_path, damage, storage, suffix):
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2}, suffix=suffix)
    path = root / "test" / "class_1" / f"1{suffix}"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, size=8, storage=storage)
    assert str(path) in str(caught.value)
    assert "replace it with a whole copy" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=path.name):  # nothing is kept that would make the next start believe it
        prepare(tmp_path, size=8, storage=storage)


def test_bytes_after_the_end_of_a_picture_do_no_harm(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    path = root / "train" / "class_0" / "0.jpg"
    path.write_bytes(path.read_bytes() + bytes(100))
    assert len(prepare(tmp_path, size=8, storage="stream").train) == 2


def test_different_sizes_without_a_size_are_refused_and_named(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 200, "test": 1}, classes=1)
    write(root / "train" / "class_0" / "199.jpg", picture(1, 12, 16))  # in another batch of decoding than the first
    with pytest.raises(DataError, match=r"0\.jpg is 12 x 12, .*\.jpg is 12 x 16\. Bring.*e\.g\. size="):
        prepare(tmp_path)
    write(root / "train" / "class_0" / "1.jpg", picture(1, 12, 16))
    with pytest.raises(DataError, match=r"0\.jpg is 12 x 12, .*/1\.jpg is 12 x 16\. Bring.*e\.g\. size="):
        prepare(tmp_path)
    assert prepare(tmp_path, size=6).shape == (3, 6, 6)
    write(root / "test" / "class_0" / "0.jpg", picture(1, 16, 16))
    for n in (1, 199):
        (root / "train" / "class_0" / f"{n}.jpg").unlink()
    with pytest.raises(
        DataError, match=r"train/.*0\.jpg is 12 x 12, .*test/.*0\.jpg is 16 x 16\. Bring them to one, e\.g\. size="
    ):
        prepare(tmp_path)


def test_a_stream_without_a_size_is_refused(tmp_path):
    write_folder(tmp_path / "set", {"train": 1, "test": 1})
    with pytest.raises(DataError, match=r"size=None.*size=224"):
        prepare(tmp_path, storage="stream")


def test_what_is_no_set_of_files_cannot_be_streamed(tmp_path):
    def arrays(root: Path, *, download: bool):
        split = Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.arange(2))
        return split, split, 2

    for _ in range(2):  # without and with a cache
        with pytest.raises(DataError, match=r"storage=stream: arrays is not a set of image files"):
            prepare(tmp_path, arrays, storage="stream")


# ---------------------------------------------------------------------------------------------------------------------
# How they are kept


def test_auto_streams_what_is_too_large_to_keep(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", {"train": 2, "test": 2})
    monkeypatch.setattr(cache_module, "RESIDENT_BYTES", 8 * 3 * 8 * 8)
    assert isinstance(prepare(tmp_path, size=8).train, Split)
    assert isinstance(prepare(tmp_path, size=9).train, Files)
    assert isinstance(prepare(tmp_path, size=9, storage="resident").train, Split)
    assert isinstance(prepare(tmp_path, size=9).train, Files)  # although there is a cache of it now


def test_a_changed_set_is_decoded_anew_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    calls = []
    monkeypatch.setattr(cache_module, "decode_all", lambda *args: calls.append(1) or decode_all(*args))

    def digest_and_decodings() -> tuple[str, int]:
        calls.clear()
        return prepare(tmp_path).digest, len(calls)

    first = digest_and_decodings()
    assert first[1] == 1
    assert digest_and_decodings() == (first[0], 0)
    path = root / "train" / "class_0" / "0.jpg"
    about, content = path.stat(), path.read_bytes()
    path.write_bytes((root / "train" / "class_0" / "1.jpg").read_bytes())
    changed = digest_and_decodings()
    assert changed[1] == 1
    assert changed[0] != first[0]
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert digest_and_decodings() == (first[0], 0)
    root.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(root)
    assert digest_and_decodings() == (first[0], 0)
    path.rename(path.with_name("7.jpg"))
    assert digest_and_decodings()[1] == 1


def test_the_digest_of_a_stream_survives_a_copy_but_not_a_change(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    first = prepare(tmp_path, size=8, storage="stream").digest
    path = root / "train" / "class_0" / "0.jpg"
    os.utime(path, ns=(1, 1))
    assert prepare(tmp_path, size=8, storage="stream").digest == first
    path.write_bytes(path.read_bytes() + b"\0")
    assert prepare(tmp_path, size=8, storage="stream").digest != first


def test_a_flipped_byte_in_the_cache_is_noticed_and_mended(tmp_path, caplog):
    write_folder(tmp_path / "set", {"train": 2, "test": 2})
    good = prepare(tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    again = prepare(tmp_path)
    assert "does not match its digest" in caplog.text
    assert again.digest == good.digest
    assert torch.equal(again.test.images, good.test.images)


def test_a_stream_is_checked_once(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", {"train": 1, "test": 1})
    prepare(tmp_path, size=8, storage="stream")
    monkeypatch.setattr("dst.data.prepare.in_children", lambda *args: pytest.fail("checked again"))
    prepare(tmp_path, size=8, storage="stream")


def test_two_processes_decode_the_same_as_one(tmp_path, monkeypatch):
    train, _, _ = image_folder(write_folder(tmp_path, {"train": 80, "test": 1}), False)
    one = decode_all(train, "")
    monkeypatch.setattr("dst.data.children._FEWEST", 50)
    monkeypatch.setattr("dst.data.children._processors", lambda: 2)
    assert torch.equal(decode_all(train, "").images, one.images)
    path = train.path(150)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError) as caught:
        decode_all(train, "")
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_cached_start_does_not_import_torchvision(tmp_path):
    write_folder(tmp_path / "set", {"train": 1, "test": 1})
    prepare(tmp_path)
    code = (
        "import sys\nfrom dst.data.cache import load\nfrom dst.data.folder import image_folder\n"
        f"load('image_folder', image_folder, root={str(tmp_path / 'set')!r}, cache={str(tmp_path / 'cache')!r}, "
        "download=False)\nprint('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# ---------------------------------------------------------------------------------------------------------------------
# Fitting


@pytest.mark.parametrize(("height", "width"), [(30, 41), (41, 30), (33, 33), (12, 90)])
@pytest.mark.parametrize("center_crop", [0.875, 1.0, 0.5])
def test_a_central_crop_is_torchvisions(height, width, center_crop):
    from torchvision.transforms.v2 import functional

    image = picture(3, height, width)[None]
    ours = Resize(14, center_crop)(image)
    reference = functional.resize(image.double(), [round(14 / center_crop)], antialias=True)
    reference = functional.center_crop(reference, [14, 14])
    assert ours.shape == (1, 3, 14, 14)
    assert (ours - reference).abs().max() <= 0.5 + 1e-4


def test_a_fit_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"center_crop=0\.5: needs size, which is null"):
        Resize(None, 0.5)
    with pytest.raises(ValueError, match=r"center_crop=1\.5: must be in \(0, 1\]"):
        Resize(8, 1.5)
