"""Building and loading: on many machines, by many processes, in spite of broken files; and what loading must not do."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch

from dst.kernels import build

BUILD = (
    "from pathlib import Path; from dst.kernels.build import built; import sys; built(Path(sys.argv[1]), sys.argv[2])"
)


@pytest.fixture
def fresh(tmp_path):
    """An empty folder for libraries, and nothing that was found out before."""
    build.load.cache_clear()
    build._compiler.cache_clear()
    yield tmp_path / "kernels"
    build.load.cache_clear()
    build._compiler.cache_clear()


def library(folder):
    (found,) = folder.glob("*.so")
    return found


def test_a_library_is_built_once_and_only_we_can_write_it(fresh):
    build.load(fresh)
    built = library(fresh)
    made = built.stat().st_mtime_ns
    assert stat.S_IMODE(built.stat().st_mode) == 0o700
    assert json.loads(built.with_suffix(".json").read_text()).keys() == {"sha256"}
    assert len([*fresh.iterdir()]) == 2
    build.load.cache_clear()
    build.load(fresh)
    assert library(fresh).stat().st_mtime_ns == made


def test_eight_processes_build_at_once(fresh):
    running = [subprocess.Popen([sys.executable, "-c", BUILD, str(fresh), build.level()]) for _ in range(8)]
    assert [process.wait() for process in running] == [0] * 8
    assert len([*fresh.iterdir()]) == 2
    build.load(fresh)


@pytest.mark.parametrize("damage", [lambda data: data[:4000], lambda data: b"", lambda data: data[:-1] + b"x"])
def test_a_torn_library_is_built_again(fresh, damage):
    build.load(fresh)
    built = library(fresh)
    whole = built.read_bytes()
    # A copy, as loaded code must not change under the process.
    elsewhere = fresh.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / built.name).write_bytes(damage(whole))
    (elsewhere / built.name).with_suffix(".json").write_bytes(built.with_suffix(".json").read_bytes())
    build.load(elsewhere)
    assert (elsewhere / built.name).read_bytes() == whole


@pytest.mark.parametrize("of", ["library", "folder"])
def test_what_others_may_write_is_not_loaded(fresh, of):
    build.load(fresh)
    built = library(fresh)
    (built if of == "library" else fresh).chmod(0o770)
    build.load.cache_clear()
    with pytest.raises(build.UnavailableError, match="others may write it: remove it"):
        build.load(fresh)


def test_without_a_compiler_it_says_so(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(build.UnavailableError, match="there is no C compiler"):
        build.load(fresh)


def test_a_compiler_may_have_options(fresh, monkeypatch):
    build.load(fresh)
    without = library(fresh)
    for cached in (build.load, build._compiler):
        cached.cache_clear()
    monkeypatch.setenv("CC", "cc -DNDEBUG")
    build.load(fresh)
    assert {*fresh.glob("*.so")} > {without}  # another one, since it is made in another way


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(build.UnavailableError, match="false fails"):
        build.load(fresh)


def test_an_openmp_that_torch_has_not_loaded_is_refused(fresh, monkeypatch):
    """As that of another compiler would be: what it calls is not in the process."""
    source = fresh.parent / "unstructured.c"
    source.write_text("void __kmpc_fork_nobody(void); void dst_permute(void) { __kmpc_fork_nobody(); }")
    monkeypatch.setattr(build, "_SOURCES", [source])
    with pytest.raises(build.UnavailableError, match=r"cannot be loaded .*__kmpc_fork_nobody"):
        build.load(fresh)


def test_a_folder_that_cannot_be_made(fresh):
    fresh.write_text("a file")
    with pytest.raises(build.UnavailableError, match="cannot be built in"):
        build.load(fresh)


LOADED = """
import sys
from pathlib import Path
import torch
from dst.kernels.build import load
load(Path(sys.argv[1]))
assert float(torch.tensor([1e-40]) * 1.0) > 0
print(*{Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line})
"""


def test_loading_leaves_denormals_and_openmp_alone(folder, kernels):
    """In a process of its own: others may have loaded a runtime that is not torch's."""
    command = [sys.executable, "-c", LOADED, str(folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert len({name for name in told if name.startswith(("libgomp", "libomp", "libiomp"))}) == 1


def test_a_child_of_fork_runs_on_one_thread(kernels):
    torch.set_num_threads(2)
    values, order, found = torch.arange(9.0), torch.arange(9).flip(0).int(), torch.empty(9)

    def permute():
        from dst.kernels.calls import threads

        at = [tensor.data_ptr() for tensor in (values, found, order)]
        kernels.dst_permute(*map(build.ctypes.c_void_p, at), build.ctypes.c_int64(9), threads())
        return threads(), found.tolist() == values.flip(0).tolist()

    assert permute() == (2, True)
    child = os.fork()
    if child == 0:
        os._exit(0 if permute() == (1, True) else 1)
    assert os.waitpid(child, 0)[1] == 0
