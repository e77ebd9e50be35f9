"""What is said through environment variables."""

import os
from typing import Final

JOB: Final = "DST_JOB"
"""Holds the id of the SLURM or local job that carries a run out."""

CODE: Final = "DST_CODE"
"""Holds the digest of the code that a job was submitted with."""


def wait_without_spinning() -> None:
    """Let idle OpenMP threads sleep, as long as nothing else was asked for.

    By default they spin, which on a machine that others use too makes a run of two threads 10 to 20 times slower. Read
    by the library when it is loaded, so it must be said before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
