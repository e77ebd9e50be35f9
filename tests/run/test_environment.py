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
torch.set_num_threads(1)
pages = []
for _ in range(20):
    x = torch.ones(9_000_000)
    y = x.abs()
    del x, y
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[9])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the C library of Linux")
def test_freed_memory_is_not_asked_for_again():
    """Of two tensors of 36 MB, of 8,789 pages each, ten times: fresh each time, or never."""
    pages = {
        how: int(subprocess.run([sys.executable, "-c", FRESH, how], check=True, capture_output=True, text=True).stdout)
        for how in ("leave", "keep")
    }
    assert pages["leave"] >= 10 * 2 * 8789
    assert pages["keep"] < 8789
