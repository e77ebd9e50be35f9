"""What lies in class folders and is no image, although it looks like one: all of it named, at once, or counted."""

import os
import tempfile
from pathlib import Path

import pytest

from dst.data.children import in_children
from dst.data.dataset import DataError
from dst.data.decode import load_decoders
from dst.data.folder import image_folder
from dst.data.listing import Listing
from dst.data.tiny_imagenet import tiny_imagenet
from tests.data.pictures import picture, write, write_folder, write_tiny_imagenet

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folder(tmp_path / "set", {"train": 2, "test": 1})


def refused(root: Path, read=image_folder) -> str:
    with pytest.raises(DataError) as caught:
        read(root, False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Refused


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


FAULTS = {
    "a link to /gone/1.jpg: No such file or directory": lambda path: link(path, "/gone/1.jpg"),
    "a link that leads back to itself": lambda path: link(path, path.name),
    "a folder, although named like an image": lambda path: path.mkdir(),
    "no regular file": os.mkfifo,
    "empty": lambda path: path.touch(),
}


@pytest.mark.parametrize("name", ["x.jpg", "X.PNG"])
@pytest.mark.parametrize("reason", FAULTS)
def test_what_is_named_like_an_image_and_is_none_is_named(root, reason, name):
    path = root / "train" / "class_1" / name
    FAULTS[reason](path)
    told = refused(root)
    assert f"a path that should be an image cannot be used: {path} ({reason}); replace it" in told


def test_all_of_it_is_named_at_once_in_the_order_of_paths(root):
    expected = []
    for part, label in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
        for number, (reason, make) in enumerate(FAULTS.items()):
            path = root / part / f"class_{label}" / "deep" / f"{number}.jpeg"
            path.parent.mkdir(exist_ok=True)
            make(path)
            expected.append(f"{path} ({reason})")
    assert f"20 paths that should be images cannot be used: {', '.join(expected)}; for each: replace" in refused(root)
    for number in range(300):
        (root / "train" / "class_0" / f"empty{number:03}.png").touch()
    told = refused(root)
    assert told.startswith("320 paths that should be images cannot be used: ")
    assert told.count(" (empty)") < 20
    assert " and 300 more; for each: " in told


def test_links_to_folders_that_are_gone_or_contain_them(root, tmp_path):
    """Silently passed over, such a link would be a class, or a part of one, less."""
    link(root / "train" / "class_9", "/gone/class_9")
    link(root / "test" / "class_9", "class_9")
    link(root / "train" / "class_0" / "up", "..")
    link(root / "train" / "class_1" / "here", ".")
    link(root / "test" / "class_0" / "root", str(root))
    told = refused(root)
    assert f"{root}/train/class_9 (a link to /gone/class_9: No such file or directory)" in told
    assert f"{root}/test/class_9 (a link that leads back to itself)" in told
    assert f"{root}/train/class_0/up (a link to a folder that it lies in)" in told
    assert f"{root}/train/class_1/here (a link to a folder that it lies in)" in told
    assert f"{root}/test/class_0/root (a link to a folder that it lies in)" in told
    assert told.startswith("5 paths")


def test_loops_in_many_classes_end(tmp_path):
    root = write_folder(tmp_path, {"train": 1, "test": 1}, classes=12)
    for label in range(12):
        for number in range(3):
            link(root / "train" / f"class_{label}" / f"up{number}", "..")
    assert refused(root).startswith("36 paths that should be images cannot be used: ")


def test_a_class_folder_with_nothing_but_faults_is_told_by_them(root):
    (root / "train" / "class_9").mkdir()
    path = root / "train" / "class_9" / "0.jpg"
    link(path, "nowhere.jpg")
    assert f"{path} (a link to nowhere.jpg: No such file or directory)" in refused(root)


def test_links_that_lead_somewhere_are_followed(root, tmp_path):
    write(tmp_path / "elsewhere" / "5.jpg", picture(5))
    link(root / "train" / "class_0" / "linked.jpg", str(tmp_path / "elsewhere" / "5.jpg"))
    link(root / "train" / "class_1" / "more", str(tmp_path / "elsewhere"))
    link(root / "train" / "class_2", str(tmp_path / "elsewhere"))
    link(root / "test" / "class_2", str(tmp_path / "elsewhere"))
    train, test, classes = image_folder(root, False)
    assert (len(train), len(test), classes) == (7, 3, 3)


def test_tiny_imagenet_is_listed_likewise(tmp_path):
    root = write_tiny_imagenet(tmp_path / "set")
    train, val = root / "train" / "n01" / "images" / "a.JPEG", root / "val" / "images" / "b.JPEG"
    link(train, "gone.JPEG")
    val.touch()
    told = refused(root, tiny_imagenet)
    assert f"2 paths that should be images cannot be used: {train} (a link to gone.JPEG: No such file" in told
    assert f"{val} (empty)" in told


def test_what_may_not_be_read_is_named():
    """By somebody who is not root, whom nothing can be hidden from."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_folder(Path(folder) / "set", {"train": 2, "test": 1}, suffix=".png")
        hidden, closed, unsearchable = root / "train" / "class_0", root / "test" / "class_1", root / "train" / "class_1"
        (root / "train" / "class_0" / "sub").mkdir()
        modes = {folder: 0o755, hidden / "sub": 0o000, closed: 0o311, unsearchable: 0o644, hidden / "1.png": 0o000}
        for path, mode in modes.items():
            os.chmod(path, mode)
        told = told_to_nobody(root)
    assert f"{hidden}/sub (a folder that cannot be read: Permission denied)" in told
    assert f"{closed} (a folder that cannot be read: Permission denied)" in told
    assert f"{unsearchable}/0.png (Permission denied)" in told
    assert f"{unsearchable}/1.png (Permission denied)" in told
    assert told.startswith("4 paths")


def test_all_files_that_may_not_be_read_are_named():
    with tempfile.TemporaryDirectory() as folder:
        root = write_folder(Path(folder) / "set", {"train": 2, "test": 1}, suffix=".png")
        os.chmod(folder, 0o755)
        one, other = root / "train" / "class_0" / "1.png", root / "test" / "class_1" / "0.png"
        for path in (one, other):
            os.chmod(path, 0o000)
        for storage in ("resident", "stream"):
            assert told_to_nobody(root, storage).startswith(
                f"2 paths that should be images cannot be used: {one} (Permission denied), {other} (Permission denied)"
            )


def test_a_root_that_may_not_be_read_is_no_traceback():
    with tempfile.TemporaryDirectory() as folder:
        root = write_folder(Path(folder) / "set", {"train": 1, "test": 1}, suffix=".png")
        os.chmod(folder, 0o755)
        os.chmod(root, 0o000)
        told = told_to_nobody(root)
        os.chmod(root, 0o755)
    assert "Permission denied" in told
    assert str(root) in told


def told_to_nobody(root: Path, storage: str = "resident") -> str:
    """Return the error of preparing a set, in a process of a user without rights."""
    from dst.data.cache import load

    load_decoders()
    list(in_children(lambda number: None, [0]))  # imports what that process may not read
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            os.setuid(65534)
            load("x", image_folder, root=str(root), cache="/nowhere/cache", download=False, size=8, storage=storage)
        except BaseException as error:
            prefix = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            os.write(writing, f"{prefix}{error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        text = told.read().decode()
    os.waitpid(process, 0)
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Counted


def test_what_looks_like_an_image_and_is_left_out_is_counted_aloud(root, caplog):
    train = root / "train"
    left_out = ["class_0/a.webp", "class_0/b.WEBP", "class_1/deep/c.tif", "class_1/d.BMP"]
    left_out += ["class_1/._0.jpg", "class_0/.x.gif", "stray.jpg", "stray.heic", ".old/a/b.png", "class_1/.c/d.PNG"]
    for name in left_out:
        path = train / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    (root / "test" / "class_0" / "e.tif").touch()
    for name in ("class_0/notes.txt", "class_0/noextension", "class_0/.hidden", "labels.csv"):
        (train / name).write_text("no image")
    files, _, _ = image_folder(root, False)
    assert len(files) == 4
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{root}: left out 11 files that look like images, since only .jpg, .jpeg, .png below class folders are read: "
        f"1 .bmp, 2 .tif, 2 .webp, 2 beside the class folders, 4 hidden; e.g. {train}/.old/a/b.png"
    )


def test_a_part_that_is_left_out_is_told(root, caplog):
    write_folder(root, {"val": 1})
    image_folder(root, False)
    (record,) = caplog.records
    assert (
        record.getMessage() == f"{root}/val is left out: test is the test set, and validation data is split off train"
    )


def test_nothing_left_out_is_not_spoken_of(root, caplog):
    image_folder(root, False)
    assert caplog.records == []


def test_a_class_of_images_of_another_kind_says_so(root, caplog):
    for part in ("train", "test"):
        (root / part / "class_7").mkdir()
        (root / part / "class_7" / "0.tif").touch()
    told = refused(root)
    assert "has class folders without images (.jpg, .jpeg, .png): class_7" in told
    assert "left out 2 files that look like images" in caplog.text
    assert "2 .tif; e.g." in caplog.text


def test_a_listing_tells_once(root, caplog):
    (root / "train" / "class_0" / "0.tif").touch()
    listing = Listing(root)
    listing.class_folders("train")
    listing.finish()
    listing.finish()
    assert len(caplog.records) == 1
