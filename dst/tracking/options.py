"""Options of the mirror of a record, checked by the mirror and by configs alike."""

from typing import Annotated

from dst.options import OneOf, Range

Mode = Annotated[
    str,
    OneOf("none", "offline", "online"),
    "wandb's mirror; none: there is none; offline: sent on request; online: while training",
]
Timeout = Annotated[float, Range(0, ends="(]"), "how long wandb may hold up a run at its end"]
