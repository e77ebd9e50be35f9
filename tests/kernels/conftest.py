"""Kernels, built once for all tests, and for every level that this machine can run."""

import platform

import pytest
import torch

from dst.kernels import build


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("root") / ".kernels"  # as a run has it


@pytest.fixture(scope="session")
def kernels(folder):
    return build.load(folder)


@pytest.fixture(scope="session")
def kernels_of(folder):
    """Level -> kernels; a machine with wider vectors runs those of narrower ones too."""
    levels = [*build.LEVELS] if platform.machine() == "x86_64" else ["neon"]
    able = levels.index(build.level())
    return {level: build.load(folder, level) for level in levels[able:] if level != "neon" or len(levels) == 1}


@pytest.fixture(autouse=True)
def _restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
