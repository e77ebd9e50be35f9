"""The runs of a job that share GPUs under MPS: who is a client, and what becomes of those that a fault ends."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dst.launcher.mps import Mps, UnavailableError
from dst.launcher.neighbours import Fault, Verdict, judged

_SETTLE_S: Final = 60.0
"""How long after a fault a neighbour may take to notice that it has ended it, too."""
_TOGETHER: Final = 3
"""How often a run may be stopped by its neighbours before it goes on without MPS."""

Gpus = tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """A client of MPS that has ended with a fatal CUDA error: its run's folder, its GPU, and its exit code."""

    folder: str
    gpus: Gpus
    code: int
    fault: Fault


@dataclass(frozen=True)
class Decision:
    """What becomes of a run that has ended so: if ``cause`` says what has stopped it, it goes on, as ``then`` says."""

    ended: Ended
    cause: str | None = None
    then: str = ""


class Sharing:
    """The runs of one job that share its GPUs. What becomes of MPS is told by ``say``, for the job's log."""

    def __init__(self, gpus: Gpus, at_once: int, say: Callable[[str], None]) -> None:
        self._gpus, self._at_once, self._say = gpus, at_once, say
        self._mps: Mps | None = None
        self._is_wanted = True
        """It is not started yet, or was ended after a fault; a run that starts needs it."""
        self._ended: list[Ended] = []
        self._killed: dict[Gpus, float] = {}
        """When a signal has ended a client on a GPU last."""
        self._stops: Counter[str] = Counter()
        self._apart: set[str] = set()
        """Runs that go on without MPS."""
        self._last = 0.0

    def _begin(self) -> None:
        self._is_wanted = False
        told = f"{self._at_once} runs at once share {', '.join(f'GPU {gpu}' for gpu in self._gpus)}"
        try:
            self._mps = Mps(self._gpus, self._at_once)
            self._say(f"{told} under MPS, each with at most this memory: {self._mps.limit}")
        except (UnavailableError, OSError) as error:
            self._say(f"{told} without an MPS of this job: {error}")

    def stop(self) -> None:
        """End MPS, whose clients have ended."""
        if self._mps is not None:
            self._mps.stop()
            self._mps = None

    def environment(self, folder: str, gpus: Gpus) -> dict[str, str]:
        """Return the environment variables that make a run a client; none if it shall not be one."""
        if folder in self._apart:
            return {}
        if self._is_wanted:
            self._begin()
        return {} if self._mps is None else self._mps.environment(gpus)

    # -- faults --------------------------------------------------------------------------------------------------------

    @property
    def is_settling(self) -> bool:
        """Some have ended with a fault: until all that it has hit have ended, MPS takes no new client."""
        return bool(self._ended)

    def note_end(self, folder: str, gpus: Gpus, code: int, fault: Fault | None) -> bool:
        """Note that a client has ended, perhaps by a fault; return whether a later decision says what becomes of it."""
        if fault is None:
            if code < 0:
                self._killed[gpus] = time.monotonic()
            return False
        self._ended.append(Ended(folder, gpus, code, fault))
        self._last = time.monotonic()
        return True

    def decisions(self, clients: Collection[Gpus]) -> list[Decision]:
        """Return what becomes of those that have ended, none while neighbours may still follow them.

        ``clients``: the GPU of each client that still runs. If there is none, the next one gets an MPS of its own.
        """
        hit = {ended.gpus for ended in self._ended}
        if not hit or (hit & set(clients) and time.monotonic() - self._last < _SETTLE_S):
            return []
        found = [decision for gpus in hit for decision in self._decided(gpus)]
        self._ended.clear()
        if self._mps is not None and not clients:
            self._say("\n".join(["MPS is ended after a fault; its last words:", *self._mps.last_words()]))
            self.stop()
            self._is_wanted = True
        return found

    def _decided(self, gpus: Gpus) -> list[Decision]:
        together = [ended for ended in self._ended if ended.gpus == gpus]
        was_killed = gpus in self._killed and time.monotonic() - self._killed[gpus] < 2 * _SETTLE_S
        verdict = judged({ended.folder: ended.fault for ended in together}, was_killed=was_killed)
        return [self._decision(ended, verdict) for ended in together]

    def _decision(self, ended: Ended, verdict: Verdict) -> Decision:
        self._stops[ended.folder] += 1
        too_often = self._stops[ended.folder] > _TOGETHER
        may_part = self._mps is not None and not self._mps.is_exclusive
        if ended.folder == verdict.cause or (too_often and not may_part):
            return Decision(ended)
        if may_part and (too_often or ended.folder in verdict.suspects):
            self._apart.add(ended.folder)
        then = f"it goes on in the same job{', without MPS' if ended.folder in self._apart else ''}"
        return Decision(ended, _cause(ended, verdict), then)


def _cause(ended: Ended, verdict: Verdict) -> str:
    if verdict.cause is not None:
        return f"stopped by the fault of run {Path(verdict.cause).name} on the GPU that they share"
    if ended.fault is Fault.SERVICE:
        return "stopped by MPS, which has failed, or has ended it after a fault of another"
    return "stopped by a fault on the GPU that it shares, of which run cannot be told"
