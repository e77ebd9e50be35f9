"""Whose doing it is if runs that share a GPU under MPS end together: a fatal fault there ends all of them.

CUDA reports such a fault to every process on that GPU, "without indicating which client generated the error". So a run
is blamed only if no other can have caused it. Where several can, all of them go on, and those whose error names a kind
of fault do so without MPS, where a fault is one's own for certain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final


class Fault(Enum):
    """What a CUDA error says of who has caused it."""

    NAMED = "a kind of fault that a kernel commits"
    VAGUE = "what follows from a fault"
    SERVICE = "MPS has failed, or has ended this client: not its own doing"


_TEXTS: Final = {
    "MPS client failed to connect to the MPS control daemon or the MPS server": Fault.SERVICE,
    "the remote procedural call between the MPS server and the MPS client failed": Fault.SERVICE,
    "MPS server is not ready to accept new MPS client requests": Fault.SERVICE,
    "the MPS client has been terminated by the server": Fault.SERVICE,
    "unspecified launch failure": Fault.VAGUE,
    "CUBLAS_STATUS_EXECUTION_FAILED": Fault.VAGUE,
    "CUDNN_STATUS_EXECUTION_FAILED": Fault.VAGUE,
    "an illegal memory access was encountered": Fault.NAMED,
    "device-side assert triggered": Fault.NAMED,
    "misaligned address": Fault.NAMED,
    "an illegal instruction was encountered": Fault.NAMED,
    "invalid program counter": Fault.NAMED,
    "operation not supported on global/shared address space": Fault.NAMED,
    "hardware stack error": Fault.NAMED,
    "the launch timed out and was terminated": Fault.NAMED,
    "uncorrectable ECC error encountered": Fault.NAMED,
    "uncorrectable NVLink error detected during the execution": Fault.NAMED,
}
"""The texts of the errors after which a process cannot use CUDA any more, as cudaGetErrorString gives them."""

_MARKS: Final = ("CUDA error", "CUDA initialization", "cudaGetDeviceCount", "Triton Error [CUDA]", "cuDNN error")
"""One of them stands in the same line, or in the one before."""


def fault_in(output: str) -> Fault | None:
    """Return what the first fatal CUDA error in the output of a run says; None if there is none."""
    before = ""
    for line in output.splitlines():
        if any(mark in before + line for mark in _MARKS):
            for text, fault in _TEXTS.items():
                if text in line:
                    return fault
        before = line
    return None


def printed(log: Path, since: int) -> str:
    """Return what a run has printed since its log had so many bytes; what cannot be read is nothing."""
    try:
        with log.open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Verdict:
    """Who has caused a fault, by name; if that cannot be told, those that are most likely to have."""

    cause: str | None
    suspects: frozenset[str] = frozenset()


def judged(faults: Mapping[str, Fault], *, was_killed: bool = False) -> Verdict:
    """Judge runs that have ended together on one GPU; ``was_killed``: another was, by a signal, at that time."""
    possible = [name for name, fault in faults.items() if fault is not Fault.SERVICE]
    if len(possible) == 1 and not was_killed:
        return Verdict(possible[0])
    named = [name for name in possible if faults[name] is Fault.NAMED]
    return Verdict(None, frozenset(named or possible))
