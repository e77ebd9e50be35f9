"""Benchmarks: commands, never timed tests. Threads wait as in a run, without spinning (see ``dst.cli``)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded, which is after this
os.environ.setdefault("GOMP_SPINCOUNT", "0")
