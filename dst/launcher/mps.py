"""Runs that share a GPU, under NVIDIA's Multi-Process Service (MPS): a control daemon for one job alone.

Without MPS, processes that share a GPU take turns; under it their kernels run beside each other. The price: a fatal
fault of one can end its neighbours (``neighbours``).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from dst.launcher import devices
from dst.launcher.keeper import LOGS, PIPES, PROGRAM, last_words

LIMIT: Final = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"

_STOP_S: Final = 25.0
"""How long the keeper may take, which waits for the daemon twice 10 s at most."""
_MIB: Final = 1 << 20


class UnavailableError(RuntimeError):
    """Runs go on without an MPS of their job; the message says why."""


class Mps:
    """The MPS of a job: a daemon that serves all its GPUs, held by a process that ends it when this one is gone."""

    def __init__(self, gpus: Sequence[str], at_once: int) -> None:
        """Start it for so many runs at once. Raises UnavailableError if it does not work."""
        self._gpus = tuple(gpus)
        given = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        _check(given, gpus)
        try:
            found = devices.ask(given)
        except devices.CudaError as error:
            raise UnavailableError(str(error)) from error
        self.is_exclusive = any(gpu.is_exclusive for gpu in found)
        """A process beside MPS cannot use the GPUs."""
        shares = [] if LIMIT in given else _shares(found, at_once)  # a user's own one goes to the clients
        self.limit = given.get(LIMIT, ",".join(shares))
        command = [sys.executable, "-m", "dst.launcher.keeper", *shares]
        self._keeper = subprocess.Popen(command, env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        word, _, told = self._keeper.stdout.readline().decode(errors="replace").strip().partition(" ")
        self._folder = Path(told)
        try:
            if word != "ready":
                raise UnavailableError(told or f"the process that shall keep {PROGRAM} ends without a word")
            devices.ask({**os.environ, **self.environment(gpus)}, contexts=True)
        except devices.CudaError as error:
            told = "; ".join([f"under MPS {error}", *last_words(self._folder)[-1:]])
            self.stop()
            raise UnavailableError(told) from error
        except BaseException:
            self.stop()
            raise

    def environment(self, gpus: Sequence[str]) -> dict[str, str]:
        """Return the environment variables by which a run on some of the job's GPUs becomes a client.

        The daemon has numbered the GPUs that it was given anew, from 0; names other than numbers stay.
        """
        visible = [str(self._gpus.index(gpu)) if gpu.isdecimal() else gpu for gpu in gpus]
        return {PIPES: str(self._folder), LOGS: str(self._folder), "CUDA_VISIBLE_DEVICES": ",".join(visible)}

    def last_words(self) -> list[str]:
        """Return the ends of the daemon's logs."""
        return last_words(self._folder)

    def stop(self) -> None:
        """End the daemon; its clients have ended before."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._keeper.communicate(b"over\n", timeout=_STOP_S)
        self._keeper.kill()  # and with it the daemon
        self._keeper.wait()


def _check(given: Mapping[str, str], gpus: Sequence[str]) -> None:
    if PIPES in given:
        raise UnavailableError(f"that of {PIPES}={given[PIPES]} is used if there is one, and neither started nor ended")
    if shutil.which(PROGRAM) is None:
        raise UnavailableError(f"there is no {PROGRAM} on PATH")
    if parts := [gpu for gpu in gpus if gpu.startswith("MIG-")]:
        raise UnavailableError(f"{parts[0]} is a part of a GPU (MIG)")


def _shares(found: Sequence[devices.Gpu], at_once: int) -> list[str]:
    """Return the limit of memory on each GPU for one client, in the words of ``LIMIT``: an equal share."""
    each = -(-at_once // max(1, len(found)))
    return [f"{number}={gpu.memory // each // _MIB}M" for number, gpu in enumerate(found)]
