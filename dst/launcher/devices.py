"""What CUDA says of the GPUs of a process: ``python -m dst.launcher.devices [--contexts]``.

It asks the driver's library itself, so that it costs a moment and no torch. With ``--contexts`` it takes a context on
each GPU, as a run does: whoever can do that can train.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_COMPUTE_MODE: Final = 20
"""CU_DEVICE_ATTRIBUTE_COMPUTE_MODE"""
_DEFAULT_MODE: Final = 0
_PATIENCE_S: Final = 60.0
"""Without a persistence daemon a driver begins anew for each process, GPU by GPU."""


class CudaError(RuntimeError):
    """CUDA does not work for this process; the message says why in CUDA's own words."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its memory in bytes, and whether a single process may have it for itself only."""

    memory: int
    is_exclusive: bool


def ask(environment: Mapping[str, str], *, contexts: bool = False) -> list[Gpu]:
    """Return the GPUs that a process with this environment sees. Raises CudaError if it cannot use them."""
    command = [sys.executable, "-m", "dst.launcher.devices", *(["--contexts"] if contexts else [])]
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CudaError(f"CUDA does not answer within {_PATIENCE_S:g} s") from error
    if done.returncode:
        raise CudaError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return [Gpu(memory, mode != _DEFAULT_MODE) for memory, mode in json.loads(done.stdout)]


def main(arguments: Sequence[str]) -> int:
    """Print memory and compute mode of each GPU as JSON; return 1 and print why if CUDA does not work."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        _check(cuda, cuda.cuInit(0))
        print(json.dumps([_told(cuda, number, "--contexts" in arguments) for number in range(_count(cuda))]))
    except (OSError, CudaError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.flush()
    os._exit(0)  # contexts end with the process


def _count(cuda: Any) -> int:
    count = ctypes.c_int()
    _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    return count.value


def _told(cuda: Any, number: int, takes_context: bool) -> tuple[int, int]:
    device, mode, memory, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.c_void_p()
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), number))
    _check(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    _check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(mode), _COMPUTE_MODE, device))
    if takes_context:
        _check(cuda, cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    return memory.value, mode.value


def _check(cuda: Any, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise CudaError(f"CUDA error {code}: {(text.value or b'unknown error').decode(errors='replace')}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
