"""What calls of kernels have in common: pointers, numbers, and on how many threads they run."""

import ctypes
import os

import torch
from torch import Tensor


def at(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's numbers; NULL for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


long = ctypes.c_int64
"""A whole number of 64 bits."""


def threads() -> int:
    """Return on how many threads kernels run: torch's number; one in a child of fork, where more would wait forever."""
    return 1 if _is_child else torch.get_num_threads()


_is_child = False


def _forked() -> None:
    global _is_child
    _is_child = True


os.register_at_fork(after_in_child=_forked)
