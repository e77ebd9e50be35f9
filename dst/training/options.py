"""Options of training. Needs no torch, so that configs are checked without it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

from dst.data.options import BatchSize
from dst.options import ASIDE, Clash, Names, Needs, OneOf, Range, declared, shown

Peak = Annotated[float, Range(0, ends="(]"), "the highest learning rate"]
Decay = Annotated[
    str,
    OneOf("all", "not_norms", "weights"),
    "what weight decay acts on: all parameters, all but those of norms, or weights of convolutions and linear layers",
]
PrecisionName = Annotated[
    str,
    OneOf("fp32", "tf32", "bf16", "fp16"),
    Clash("tf32", "device", "cpu", "it would be ignored: only GPUs have it; use fp32 or bf16"),
    "number format; tf32: on GPUs that have it; bf16, fp16: mixed, fp16 with loss scaling",
]
Accumulate = Annotated[int, Range(1, "batch_size"), "number of parts over which a batch's gradients are accumulated"]
LabelSmoothing = Annotated[float, Range(0, 1, "[)"), "the share of every label that is spread over all classes"]
Select = Annotated[
    str,
    OneOf("last", "best_val"),
    "last: test the last weights; best_val: those of the best validation accuracy at the final density",
]
Seed = Annotated[int, Range(0), "all random numbers are derived from it"]
Epochs = Annotated[int, Range(1), "passes over the training set"]
MaxSteps = Annotated[
    int, Range(1), "end training after this many steps, of which all fractions then are; null: after all epochs"
]
Determinism = Annotated[
    str, OneOf("strict", "fast"), "strict: resumes bit-identically; fast: may differ in the last bits"
]
Threads = Annotated[int, Range(1, 1024), "CPU threads; part of the run id, since they change bits"]
_MAKES_GRAPHS: Final = "the step cannot be a graph, since the compiler makes graphs of its own; use never, or default"
Capture = Annotated[
    str,
    OneOf("auto", "always", "never"),
    Clash("always", "device", "cpu", "there are no CUDA graphs; use auto, which computes eagerly there"),
    Clash("always", "processes", Range(2), "a step waits for other processes, as no graph can; use auto or never"),
    Clash("always", "compile_mode", "reduce-overhead", _MAKES_GRAPHS),
    "replay the step as one CUDA graph; auto: with device=cuda, where nothing stands in the way; always: refuse to run "
    "without; never: eagerly",
]
CompileMode = Annotated[
    str,
    OneOf("default", "reduce-overhead"),
    Needs("compile"),
    Clash("reduce-overhead", "device", "cpu", "it would be ignored: it is about CUDA graphs; use default"),
    Clash("reduce-overhead", "processes", Range(2), "nobody has tried it; use default"),
    "mode of torch.compile; reduce-overhead: it makes CUDA graphs of the model, forward and backward",
]
ChannelsLast = Annotated[bool, "store images channels-last, as tensor cores prefer"]
LogEverySteps = Annotated[int, Range(1), "steps from one line of the history to the next"]
SaveEverySteps = Annotated[int, Range(1), "steps from one checkpoint to the next, in addition; null: by time only"]
Keep = Annotated[int, Range(1), "number of newest checkpoints to keep"]
ClipNorm = Annotated[
    float,
    Range(0, ends="(]"),
    "the largest norm of all gradients together, to which they are scaled down (after clip_value); null: any",
]
ClipValue = Annotated[
    float, Range(0, ends="(]"), "the largest size of each gradient, to which it is cut (before clip_norm); null: any"
]
EvalEveryEpochs = Annotated[int, Range(1), "epochs from one validation to the next"]


@dataclass
class Optimizer:
    """The optimizer."""

    decay: Decay = "all"


@dataclass
class LearningRate:
    """The learning rate as a function of the step: linear warm-up to the peak, then a curve."""

    peak: Peak = 0.1
    warmup_epochs: Annotated[float, Range(0), "epochs in which the rate rises to its peak"] = 0.0


@dataclass
class Schedule:
    """How long and how fast to train."""

    epochs: Epochs = 50
    batch_size: BatchSize = 64
    accumulate: Accumulate = 1
    multiplier: Annotated[
        int, Range(1), "train this many times as long; milestones and horizons scale with it, update_every stays"
    ] = 1
    max_steps: MaxSteps | None = None
    update_every: Annotated[int, ASIDE, Range(1), "steps from one update of the topology to the next"] = 50
    label_smoothing: LabelSmoothing = 0.0
    clip_norm: ClipNorm | None = None
    clip_value: ClipValue | None = None
    select: Select = "last"
    eval_every_epochs: EvalEveryEpochs = 1


def unvalidated_problems(select: str, eval_every_epochs: int) -> Iterator[str]:
    """Yield the options that would be ignored where there is no validation split."""
    for name, value in {"select": select, "eval_every_epochs": eval_every_epochs}.items():
        default = declared(Schedule)[name].default
        if value != default:
            yield f"{name}={value} would be ignored: there is no validation split. Use {shown(default)}"


SCALED_LOSSES: Final = (
    "the gradients of the model and of a snapshot are read before they are unscaled, so that the correction would mix "
    "different loss scales; use bf16 or fp32"
)
"""Why a correction by a snapshot does not go with fp16."""


def snapshot_problems(batches: int, called: Names = str) -> Iterator[str]:
    """Yield that an epoch has too few batches for what a correction by a snapshot estimates of them."""
    if batches < 2:
        yield (
            "estimates a covariance over the batches of an epoch, which needs two of them, but there is one only: "
            f"choose a smaller {called('batch_size')}"
        )


@dataclass
class Checkpoint:
    """When to save."""

    every_min: Annotated[float, ASIDE, Range(0, ends="(]"), "minutes from one checkpoint to the next"] = 1.0
    every_steps: Annotated[SaveEverySteps | None, ASIDE] = None
    keep: Annotated[Keep, ASIDE] = 2
