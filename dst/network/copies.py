"""Copies of networks without their hooks."""

from typing import Any


def without_hooks(network: Any) -> dict[int, Any]:
    """Return a memo with which ``copy.deepcopy(network, memo)`` leaves the hooks of all modules out.

    They would otherwise run in the copy too, or be copied with all that they hold. ``deepcopy`` takes what is in its
    memo for copied already: here an empty dictionary for each one that holds hooks. ``network``: a ``torch.nn.Module``.
    """
    return {
        id(value): type(value)()
        for module in network.modules()
        for name, value in vars(module).items()
        if "_hooks" in name and isinstance(value, dict)
    }
