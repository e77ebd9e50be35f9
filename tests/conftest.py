"""Settings that all tests share."""

import os

import torch
from hypothesis import settings

# No deadline: machines that run tests are busy. In CI the examples are the same every time, so that a failure is real.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

torch.set_num_threads(1)
