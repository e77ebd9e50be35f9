"""Settings that all tests share."""

import os
import signal

import torch
from hypothesis import settings

# No deadline: machines that run tests are busy. In CI the examples are the same every time, so that a failure is real.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

torch.set_num_threads(1)


def pytest_configure():
    """Hear what a shell lets these tests ignore (nohup, a command in the background): what they start inherits it."""
    for number, heard in {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, heard)
