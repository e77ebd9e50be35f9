"""Options of the network that are no model's own. Needs no torch, so that configs are checked without it."""

from dataclasses import dataclass
from typing import Annotated

from dst.options import Excludes, Range
from dst.registry import MemberOf

BiasScale = Annotated[
    float,
    Range(0),
    "deviation of the first biases of convolutions and linear layers, in deviations of Kaiming's weights of their "
    "layer; 0: they start from zero; null: as init leaves them",
]
InitDensity = Annotated[
    float,
    Range(0, 1, "(]"),
    "first weights of convolutions and linear layers are divided by its square root, since a mask of this density is "
    "to follow; null: they are not",
]


@dataclass
class Model:
    """The weights that a network starts from, unless they are those of another run."""

    init: Annotated[
        str, MemberOf("model_init"), Excludes("weights"), "how first weights are drawn; default: as the model has it"
    ] = "default"
    bias_scale: Annotated[BiasScale | None, Excludes("weights")] = None
    init_density: Annotated[InitDensity | None, Excludes("weights")] = None
