"""Second derivatives, which kernels do not have."""

import torch


def refuse_second(what: str) -> None:
    """Raise RuntimeError, within a backward pass, if its own graph is wanted; ``what``: has no second derivatives."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} no second derivatives: take these of the network as torch computes it, before it is given kernels"
        )
