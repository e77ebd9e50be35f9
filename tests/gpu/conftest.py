"""Tests that need a CUDA GPU; elsewhere they are skipped, or fail where DST_REQUIRE_GPU is set."""

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    if os.environ.get("DST_REQUIRE_GPU"):
        raise pytest.UsageError("DST_REQUIRE_GPU is set, but PyTorch finds no CUDA GPU on this machine")
    skip = pytest.mark.skip(reason="PyTorch finds no CUDA GPU on this machine")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
