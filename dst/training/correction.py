"""What is done to the gradient before the optimizer steps."""

from typing import Annotated, Any

from dst.options import OneOf, Range, ZeroOr, checked
from dst.sparsity.marks import marked


@marked("snapshot")
@checked
def agent(
    situation: Any,
    *,
    every_epochs: Annotated[int, Range(1), "epochs from one snapshot of the weights to the next"] = 1,
    gamma: Annotated[
        float, Range(0, 1), "the coefficient of the correction is gamma times the smoothed estimate"
    ] = 0.1,
    alpha: Annotated[float, Range(0, 1), "the share of a new estimate in the smoothed one"] = 0.3,
    initial: Annotated[float, Range(0, 1), "the smoothed estimate before the first"] = 0.1,
    clip: Annotated[bool, "bring each estimate into [0, 1]"] = False,
    variance_floor: Annotated[
        float, Range(0), "below this variance of the losses at the snapshot an estimate is left out"
    ] = 0.0,
    proxy: Annotated[
        str,
        OneOf("loss", "gradient"),
        "what the estimate is taken of: the losses of the batches, or their gradients, at a fifth more compute",
    ] = "loss",
    variance_batches: Annotated[
        int,
        ZeroOr(2),
        "batches on which the variance of the gradient is measured with and without the correction, at the end of each "
        "period; 0: off",
    ] = 8,
) -> Any:
    """Correct each gradient by that of a snapshot on the same batch, and the mean of these over the epoch.

    AGENT (Lei et al. 2024, "Balance is Essence: Accelerating Sparse Training via Adaptive Gradient Correction").
    """
    raise NotImplementedError("correction=agent is not finished")
