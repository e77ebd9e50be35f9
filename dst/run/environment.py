"""Environment variables."""

import os
from typing import Final

JOB: Final = "DST_JOB"
"""The id of the SLURM or local job that carries out a run."""

CODE: Final = "DST_CODE"
"""The digest of the code with which a job was submitted."""


def wait_without_spinning() -> None:
    """Let idle OpenMP threads sleep, unless the environment says otherwise.

    By default they spin. On a machine with other users this makes a run of two threads 10 to 20 times slower. OpenMP
    reads these variables when it is loaded, so call this before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
