"""Options of what kernels compute. Needs no torch, so that configs are checked without it."""

from typing import Annotated, Final

from dst.options import Clash, OneOf

_HALF: Final = "it would be ignored: convolutions then give half precision, which these kernels do not take; use fp32"

Fused = Annotated[
    str,
    OneOf("none", "all"),
    Clash("all", "device", "cuda", "it has no meaning: these kernels are for CPUs; use none"),
    Clash("all", "compile", True, "the compiler would stop at each kernel, and it fuses by itself; choose one of them"),
    Clash("all", "precision", "bf16", _HALF),
    Clash("all", "precision", "fp16", _HALF),
    Clash("all", "sync_batch_norm", True, "statistics cannot be taken over all processes; choose one of them"),
    "all: compute batch norm, with an addition and ReLU after it, and dropout by a kernel each, in training on a CPU; "
    "images are channels-last; other last bits, and other random numbers for dropout",
]
