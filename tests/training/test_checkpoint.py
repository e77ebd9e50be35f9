import errno
import hashlib
import io
import json
import os
import pickle
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dst.training.checkpoint import CheckpointError, Checkpoints, UnreadableError
from tests.old_records import BEFORE_PHASES, unpack


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    """Return everything in a folder that can tell a change: links by where they lead, files by their bytes."""
    return {
        path.name: os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        for path in folder.iterdir()
    }


def files(step, phase=0):
    stem = f"phase_{phase:02d}_step_{step:09d}" if phase else f"step_{step:09d}"
    return [f"{stem}.json", f"{stem}.pt"]


def test_newest_are_kept_and_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.load_newest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"w": torch.full((3,), float(step)), "n": step})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        f"step_{step:09d}.{suffix}" for step in (10, 15) for suffix in ("json", "pt")
    ]
    state = Checkpoints(tmp_path / "c").load_newest()
    assert state["n"] == 15
    assert state["w"].tolist() == [15.0] * 3


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"n": 1})
    data = tmp_path / "c" / "step_000000001.pt"
    torch.save({"n": Hostile()}, data)
    manifest = json.loads(data.with_suffix(".json").read_text())
    manifest |= {"bytes": data.stat().st_size, "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}
    data.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load_newest()
    assert not (tmp_path / "owned").exists()


def test_leftovers_of_a_broken_write_go_with_the_next_save(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for stem in ("", "phase_01_", "phase_100_"):
        for name in ("2.pt.tmp", "3.pt", "3.json.tmp", "4.json.tmp"):
            (folder / f"{stem}step_00000000{name}").write_text("x")
    Checkpoints(folder).save(5, {"n": 5})
    assert names(folder) == ["step_000000005.json", "step_000000005.pt"]


def test_a_damaged_checkpoint_never_displaces_a_good_one(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(20, {"n": 20})
    data = tmp_path / "c" / "step_000000020.pt"
    data.write_bytes(data.read_bytes()[:-1])
    assert checkpoints.load_newest() is None
    assert "passing over checkpoint step_000000020" in capsys.readouterr().err
    checkpoints.save(10, {"n": 10})
    assert Checkpoints(tmp_path / "c").load_newest()["n"] == 10


def test_another_format_is_neither_read_nor_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"n": 1})
    manifest = tmp_path / "c" / "step_000000001.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this code reads 1"):
        checkpoints.load_newest()
    assert manifest.exists()


# -- phases ------------------------------------------------------------------------------------------------------------


def test_a_later_phase_is_newer_and_what_ends_a_phase_is_not_lost(tmp_path):
    """Two checkpoints of one step: before what ends a phase, and after it."""
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder, keep=3, run="abc")
    saved = [(0, 5), (0, 20), (1, 20), (1, 25), (12, 25), (123, 25)]
    for phase, step in saved:
        checkpoints.save(step, {"at": [phase, step]}, phase)
        assert checkpoints.newest() == checkpoints.path(step, phase) == folder / files(step, phase)[1]
        assert Checkpoints(folder, run="abc").load_newest() == {"at": [phase, step]}
    assert names(folder) == sorted(name for phase, step in saved[3:] for name in files(step, phase))
    said = json.loads((folder / files(25, 12)[0]).read_text())
    assert (said["format"], said["phase"], said["step"], said["run"]) == (1, 12, 25, "abc")
    for phase, step in saved[3:]:
        digest = json.loads((folder / files(step, phase)[0]).read_text())["sha256"]
        assert checkpoints.with_digest(digest) == folder / files(step, phase)[1]


@pytest.mark.parametrize("phase", [0, 1])
def test_what_a_step_of_a_phase_has_saved_is_not_written_again(tmp_path, phase):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(20, {"n": 1}, phase)
    before = contents(tmp_path / "c")
    checkpoints.save(20, {"n": 2}, phase)
    assert contents(tmp_path / "c") == before


def test_the_order_is_by_number_whatever_the_names(tmp_path):
    """As text, 1000000000 sorts before 999999999, and phase 100 before phase 99."""
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    for phase, step in ((0, 999_999_999), (0, 1_000_000_000), (99, 1_000_000_000), (100, 1_000_000_000)):
        checkpoints.save(step, {"at": [phase, step]}, phase)
        assert checkpoints.load_newest() == {"at": [phase, step]}
        assert names(tmp_path / "c") == files(step, phase)


def test_code_without_phases_takes_a_later_phase_for_a_file_of_somebody_else(tmp_path):
    """Its pattern of names, as it was before there were phases."""
    Checkpoints(tmp_path / "c").save(20, {"n": 1}, 1)
    assert not [name for name in names(tmp_path / "c") if re.match(r"step_\d{9,}", name)]


def test_a_checkpoint_of_the_code_before_phases_is_one_of_the_first_phase(tmp_path):
    """Written by that code in a run of its own; it is read, counts as saved, and makes way for a later one."""
    folder = unpack(tmp_path / "outputs", BEFORE_PHASES) / "f7fa3ea57e6c" / "checkpoints"
    assert names(folder) == sorted([*files(35), *files(40)])
    assert not any("phase" in json.loads((folder / files(step)[0]).read_text()) for step in (35, 40))
    checkpoints = Checkpoints(folder, keep=2, run="f7fa3ea57e6c")
    before = contents(folder)
    state = checkpoints.load_newest()
    assert (state["counters"]["step"], "phase" in state["counters"]) == (40, False)
    assert sum(int(mask.sum()) for mask in state["sparsifier"]["masks"].values()) == 118  # of round(.1 x 1184)
    assert checkpoints.newest() == folder / files(40)[1]
    checkpoints.save(40, {"n": 0})
    assert contents(folder) == before
    checkpoints.save(40, {"n": 1}, phase=1)
    assert names(folder) == sorted([*files(40), *files(40, 1)])
    assert checkpoints.load_newest() == {"n": 1}
    (folder / files(40, 1)[1]).write_bytes(b"x")
    assert checkpoints.load_newest()["counters"]["step"] == 40


# -- what cannot be read now is no damage ------------------------------------------------------------------------------


@contextmanager
def no_descriptors_left(folder):
    """EMFILE: this process may open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def no_permission(folder):
    """EACCES: the folder, or its files, belong to another user."""
    if os.geteuid() == 0:  # whom permissions do not bind
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        folder.chmod(0)
        try:
            yield
        finally:
            folder.chmod(0o700)


@contextmanager
def replaced_by(folder, name, target):
    """Let a file be a link that cannot be followed, or to something whose reading fails as a broken disk does."""
    path = folder / name
    path.rename(folder / "kept")
    path.symlink_to(target)
    try:
        yield
    finally:
        path.unlink()
        (folder / "kept").rename(path)


def on_a_broken_disk(folder):
    """EIO when the manifest is read."""
    return replaced_by(folder, files(20)[0], "/proc/self/mem")


def with_data_that_cannot_be_opened(folder):
    """ELOOP when the data is opened."""
    return replaced_by(folder, files(20)[1], files(20)[1])


@contextmanager
def on_a_disk_that_is_not_mounted(folder):
    """ENOENT where the folder is a link."""
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    folder.symlink_to("missing")
    try:
        yield
    finally:
        folder.unlink()
        elsewhere.rename(folder)


@pytest.mark.parametrize(
    ("trouble", "number"),
    [
        (no_descriptors_left, errno.EMFILE),
        (no_permission, errno.EACCES),
        (on_a_broken_disk, errno.EIO),
        (with_data_that_cannot_be_opened, errno.ELOOP),
        (on_a_disk_that_is_not_mounted, errno.ENOENT),
    ],
    ids=lambda value: getattr(value, "__name__", errno.errorcode.get(value)),
)
def test_what_cannot_be_read_now_stops_and_changes_nothing(tmp_path, trouble, number):
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder)
    for step in (10, 20):
        checkpoints.save(step, {"n": step})
    before = contents(folder)
    for read in (checkpoints.load_newest, checkpoints.newest):
        with trouble(folder), pytest.raises((UnreadableError, OSError)) as caught:
            read()
        found = caught.value if isinstance(caught.value, OSError) else caught.value.__cause__
        assert found.errno == number
        assert contents(folder) == before
    assert checkpoints.load_newest()["n"] == 20


@pytest.mark.parametrize("step", [10, 20])
@pytest.mark.parametrize("call", range(1, 5))
def test_any_read_that_fails_stops_and_changes_nothing(tmp_path, monkeypatch, step, call):
    """ESTALE, as of a file server that was started anew, at each of the four reads of two checkpoints."""
    folder, calls, original = tmp_path / "c", iter(range(1, 100)), io.open
    checkpoints = Checkpoints(folder)
    for saved in (10, 20):
        checkpoints.save(saved, {"n": saved})
    if step == 10:
        (folder / files(20)[1]).write_bytes(b"x")
    before = contents(folder)

    def stale(path, *args, **kwargs):
        if Path(path).parent == folder and next(calls) == call:
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", stale)
        if call <= (2 if step == 20 else 4):
            with pytest.raises(UnreadableError, match=r"cannot be read now .*Stale file handle.*run the same command"):
                checkpoints.load_newest()
        else:
            assert checkpoints.load_newest()["n"] == step
    after = contents(folder)
    assert {name.removesuffix(".damaged"): content for name, content in after.items()} == before
    assert any(name.endswith(".damaged") for name in after) == (step == 10 and call > 2)
    assert Checkpoints(folder).load_newest()["n"] == step


# -- damage is proven, and set aside -----------------------------------------------------------------------------------

DAMAGE = {
    "flipped": lambda data, manifest: data.write_bytes(data.read_bytes()[:-1] + b"x"),
    "shortened": lambda data, manifest: data.write_bytes(data.read_bytes()[:-1]),
    "emptied": lambda data, manifest: data.write_bytes(b""),
    "without data": lambda data, manifest: data.unlink(),
    "of another step": lambda data, manifest: change(manifest, step=19),
    "of another phase": lambda data, manifest: change(manifest, phase=2),
    "torn": lambda data, manifest: manifest.write_bytes(manifest.read_bytes()[:30]),
    "no mapping": lambda data, manifest: manifest.write_text("[]"),
    **{
        f"{name}={value!r}": lambda data, manifest, name=name, value=value: change(manifest, **{name: value})
        for name in ("format", "run", "phase", "step", "bytes", "sha256")
        for value in (None, {}, 1.5, True)
    },
    **{
        f"no {name}": lambda data, manifest, name=name: change(manifest, **{name: ...})
        for name in ("format", "step", "bytes", "sha256")
    },
}


def change(manifest, **fields):
    said = json.loads(manifest.read_text()) | fields
    manifest.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


def damaged(folder, damage, phase, capsys):
    """Damage the newest of two checkpoints, see the other one counted, and save the newest again."""
    checkpoints = Checkpoints(folder, run="abc")
    for step in (10, 20):
        checkpoints.save(step, {"n": step}, phase if step == 20 else 0)
    damage(*(folder / name for name in reversed(files(20, phase))))
    before = contents(folder)
    assert checkpoints.newest() == folder / files(10)[1]
    assert contents(folder) == before  # who only reads changes nothing
    assert checkpoints.load_newest()["n"] == 10
    assert f"passing over checkpoint {files(20, phase)[1][:-3]}: " in capsys.readouterr().err
    expected = {f"{name}.damaged" if name in files(20, phase) else name: content for name, content in before.items()}
    assert contents(folder) == expected
    checkpoints.save(20, {"n": 21}, phase)
    assert contents(folder).items() >= expected.items()
    assert checkpoints.load_newest()["n"] == 21


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_proven_mismatch_is_set_aside_and_the_one_before_it_counts(tmp_path, capsys, damage, phase):
    damaged(tmp_path / "c", damage, phase, capsys)


def test_the_first_phase_may_go_unsaid_a_later_one_may_not(tmp_path, capsys):
    def unsaid(data, manifest):
        change(manifest, phase=...)

    damaged(tmp_path / "c", unsaid, 1, capsys)
    checkpoints = Checkpoints(tmp_path / "d")
    checkpoints.save(20, {"n": 20})
    unsaid(*(tmp_path / "d" / name for name in reversed(files(20))))
    assert checkpoints.load_newest()["n"] == 20


@pytest.mark.parametrize("phase", [0, 1])
def test_of_those_set_aside_the_latest_two_are_kept(tmp_path, phase):
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder)
    for step in (5, 30, 20, 10, 20):
        checkpoints.save(step, {"n": step}, phase if step == 20 else 0)
        (folder / files(step, phase if step == 20 else 0)[1]).write_bytes(str(step).encode())
        assert checkpoints.load_newest() is None
    assert names(folder) == sorted(f"{name}.damaged" for name in [*files(10), *files(20, phase)])


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused_and_left_alone(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    Checkpoints(mine, run="abc").save(10, {"n": 10})
    Checkpoints(other, run="def").save(20, {"n": 20})
    for name in files(20):
        (mine / name).write_bytes((other / name).read_bytes())
    before = contents(mine)
    with pytest.raises(CheckpointError, match=r"step_000000020\.pt is of run def, not of run abc: it was copied"):
        Checkpoints(mine, run="abc").load_newest()
    with pytest.raises(CheckpointError, match="of run def"):
        Checkpoints(mine, run="abc").save(20, {"n": 0})
    assert contents(mine) == before
    assert Checkpoints(mine).newest() == mine / files(20)[1]  # who takes weights from a run takes what is there
    assert not isinstance(CheckpointError(), UnreadableError)


def test_a_checkpoint_that_does_not_say_whose_it_is_is_the_runs_own(tmp_path):
    """One of an earlier version of this code, with which a run may be continued; the next one says it."""
    folder = tmp_path / "c"
    Checkpoints(folder).save(10, {"n": 10})
    assert "run" not in json.loads((folder / files(10)[0]).read_text())
    checkpoints = Checkpoints(folder, keep=1, run="abc")
    assert checkpoints.load_newest()["n"] == 10
    checkpoints.save(20, {"n": 20})
    assert names(folder) == files(20)
    assert json.loads((folder / files(20)[0]).read_text())["run"] == "abc"


# -- what is not this run's --------------------------------------------------------------------------------------------


def test_only_what_this_run_wrote_is_removed(tmp_path):
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder, keep=1, run="abc")
    Checkpoints(folder, run="def").save(3, {"n": 3})
    checkpoints.save(5, {"n": 5})
    others = ("step_5.pt", "step_000000004.pt", "step_000000005.pt.bak", "phase_1_step_000000001.json", "phase_01.pt")
    for name in ("my_best_model.pt", "notes.tmp", ".hidden", *others):
        (folder / name).write_text(name)
    (folder / "plots").mkdir()
    (folder / "plots" / "figure.pdf").write_text("figure")
    for name in ("step_000000001.json", "step_000000001.pt", "step_000000002.json.tmp"):
        (folder / name).mkdir()
    (folder / "link.pt").symlink_to("my_best_model.pt")
    foreign = {name: content for name, content in contents(folder).items() if name not in files(5)}
    for step in (10, 15, 20):
        checkpoints.save(step, {"n": step})
        assert names(folder) == sorted([*foreign, *files(step)])
    assert {name: contents(folder)[name] for name in foreign} == foreign
    assert (folder / "plots" / "figure.pdf").read_text() == "figure"
    assert checkpoints.load_newest()["n"] == 20


def test_a_checkpoint_is_saved_although_an_old_one_cannot_be_removed(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(5, {"n": 5})

    def busy(self, **_):
        raise OSError(errno.EBUSY, "busy")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        checkpoints.save(10, {"n": 10})
    assert "an old checkpoint cannot be removed: [Errno 16] busy" in capsys.readouterr().err
    assert checkpoints.load_newest()["n"] == 10
    checkpoints.save(15, {"n": 15})
    assert names(tmp_path / "c") == files(15)
