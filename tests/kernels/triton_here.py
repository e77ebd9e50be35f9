"""Whether Triton can be there: torch for CUDA brings it along, and then it must be there."""

import importlib.util

import pytest
import torch

needs_triton = pytest.mark.skipif(
    torch.version.cuda is None and importlib.util.find_spec("triton") is None,
    reason="torch is built without CUDA here, and Triton is not installed",
)
