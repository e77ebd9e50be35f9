"""Products with units of 16 channels are right: all of ``tests/kernels/interpreted_blocks.py``, in a process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dst.kernels import unit_blocks
from dst.kernels.build import UnavailableError
from dst.kernels.shape import Shape
from dst.kernels.units import units_of
from tests.kernels.triton_here import needs_triton

CHECKS = [str(Path(__file__).with_name(name)) for name in ("interpreted_blocks.py", "interpreted_packed.py")]


@needs_triton
def test_products_in_the_interpreter(tmp_path):
    """Triton is told when it is imported that it shall interpret, which other tests in this process must not see."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *CHECKS]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    told = re.search(r"^(\d+) passed in", result.stdout, re.MULTILINE)
    assert told, result.stdout  # nothing skipped
    assert int(told[1]) >= 66


def test_without_triton_the_remedy_is_told(monkeypatch):
    """Everything else can be imported then."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "dst.kernels.triton_blocks", raising=False)
    monkeypatch.delattr("dst.kernels.triton_blocks", raising=False)
    unit_blocks.kernels.cache_clear()
    with pytest.raises(
        UnavailableError, match=r"need Triton, which comes with torch for CUDA on Linux.*: compute with"
    ):
        unit_blocks.kernels()


@needs_triton
def test_a_cpu_is_refused():
    unit_blocks.kernels.cache_clear()
    layer = unit_blocks.UnitBlocks(units_of(torch.ones(32, 16, dtype=torch.bool)), Shape(16, 32), "cpu")
    with pytest.raises(ValueError, match="for CUDA GPUs, not for inputs on cpu"):
        unit_blocks.block_product(torch.zeros(4, 16), torch.zeros(16 * 32), layer)
