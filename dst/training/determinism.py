"""Same command, same bits: pinned threads, deterministic algorithms, random numbers derived from the step."""

import os

import torch

from dst.options import checked
from dst.seeding import derive_seed
from dst.training.options import Determinism, Threads


@checked
def configure(device: str, determinism: Determinism, threads: Threads) -> None:
    """Pin what can change bits. ``strict`` allows deterministic algorithms only; ``fast`` lets the device choose."""
    torch.set_num_threads(threads)
    strict = determinism == "strict"
    if strict and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(strict)
    # Else it fills what is allocated before it is written, a tenth of a small network's step: it guards against reading
    # memory that nobody wrote, which nothing here does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined,unused-ignore]
    torch.backends.cudnn.benchmark = not strict
    if device == "cuda":
        _leave_default_stream()


def _leave_default_stream() -> None:
    """Work on a stream of this process's own from now on: what is captured must be, and so must all that comes before.

    On another stream than its first pass, a backward pass would make the default one wait, which breaks a capture.
    """
    if torch.cuda.current_stream() == torch.cuda.default_stream():
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream())
        torch.cuda.set_stream(stream)


def seed_torch(seed: int, *path: str | int) -> None:
    """Seed the default generators of the CPU and of the current GPU as a function of ``seed`` and ``path``."""
    derived = derive_seed(seed, *path)
    torch.default_generator.manual_seed(derived)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        torch.cuda.manual_seed(derived)
