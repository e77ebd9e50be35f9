"""Settings that all tests share."""

import os
import signal

import pytest
import torch
from hypothesis import settings

# No deadline: machines that run tests are busy. In CI the examples are the same every time, so that a failure is real.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

torch.set_num_threads(1)


def pytest_configure():
    """Hear what a shell lets these tests ignore (nohup, a command in the background): what they start inherits it."""
    heard_outside = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    for number, heard in heard_outside.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, heard)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where kernels are built, once for all tests."""
    return tmp_path_factory.mktemp("root") / ".kernels"  # as a run has it


@pytest.fixture(scope="session")
def kernels(folder):
    from dst.kernels import build

    return build.load(folder)


@pytest.fixture(scope="session")
def packing(folder):
    """Pack layers by the fixed rule."""
    from dst.sparsity.weights.packing import packed

    return packed(folder)


@pytest.fixture(scope="session")
def root(folder, kernels):
    """A root of outputs, in which the kernels are built already."""
    return folder.parent
