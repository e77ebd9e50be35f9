"""What a process that trains asks of its surroundings."""

import subprocess
import sys

import pytest

FRESH = """
import resource, sys
from dst.run.environment import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
import torch
x, pages = torch.ones(2_359_296), []
for _ in range(12):
    y = x.abs() * x + x.square()
    z = y.abs().masked_fill(y > 3, 0)
    del y, z
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the C library of Linux")
def test_freed_memory_is_not_asked_for_again():
    """Of four tensors of 9 MB, of 2,304 pages each, ten times: some of them fresh each time, or none."""
    pages = {
        how: int(subprocess.run([sys.executable, "-c", FRESH, how], check=True, capture_output=True, text=True).stdout)
        for how in ("leave", "keep")
    }
    assert pages["keep"] < 100
    assert pages["leave"] > 10 * 2304
