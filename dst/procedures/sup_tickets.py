"""Cheap tickets at the end of training, superposed to one network."""

from typing import Annotated, Any

from dst.options import Excludes, Needs, OneOf, Range, checked
from dst.sparsity.marks import marked


@marked("cycles")
@checked
def sup_tickets(
    length: Any,
    method: Any,
    *,
    cycle_rate: Annotated[
        float,
        Range(0, 1, "()"),
        Excludes("pretrain_epochs"),
        "the share of all epochs that cycles may have; what is left over by whole cycles is pretraining",
    ] = 0.2,
    cycle_epochs: Annotated[int, Range(1), "epochs of a cycle, at whose end a ticket is taken"] = 4,
    pretrain_epochs: Annotated[
        int | None, Range(1), "epochs of pretraining, all others being those of cycles; null: by cycle_rate"
    ] = None,
    lr: Annotated[
        str,
        OneOf("triangular", "constant"),
        "the rate in cycles: up to the middle and down again, or the last of pretraining",
    ] = "triangular",
    lr_at_ticket: Annotated[
        float, Range(0, ends="(]"), Needs("lr", "triangular"), "the rate at a cycle's beginning and end"
    ] = 0.001,
    lr_mid_cycle: Annotated[
        float, Range(0, ends="(]"), Needs("lr", "triangular"), "the rate in the middle of a cycle"
    ] = 0.005,
    re_explore: Annotated[
        float | None,
        Range(0, 1, "(]"),
        "the share of weights that an update on a cycle's first step drops and grows; null: no such update",
    ] = None,
    freeze_updates: Annotated[
        bool, "no updates of the topology in cycles but re_explore; false: they go on with the last drop fraction"
    ] = True,
    superpose: Annotated[
        str,
        OneOf("caa", "cima"),
        "caa: the cumulative average of all networks; cima: a moving average of ticket and superposed network",
    ] = "caa",
    cima_factor: Annotated[
        float, Range(0, 1, "()"), Needs("superpose", "cima"), "the share of the ticket in the moving average"
    ] = 0.5,
    include_pretrained: Annotated[bool, "the pretrained network is the first to be superposed"] = True,
    prune_back: Annotated[
        str,
        OneOf("each_cycle", "end"),
        "when the superposed network is pruned to the density: after each cycle, or after the last one only",
    ] = "each_cycle",
    average_over: Annotated[
        str,
        OneOf("networks", "active"),
        Needs("superpose", "caa"),
        "a weight is averaged over all networks, with zeros where it is not active, or over those where it is active",
    ] = "networks",
    pool: Annotated[
        str, OneOf("global", "layer"), "prune back by magnitude in all layers together, or in each to its own count"
    ] = "global",
    batch_norm: Annotated[
        str,
        OneOf("reestimate", "average"),
        "statistics of the superposed network: anew by a pass over the training set, or averaged like the weights",
    ] = "reestimate",
) -> Any:
    """Train, then take tickets at the ends of short cycles and superpose them, at the same density.

    Sup-tickets (Yin et al. 2022, "Superposing Many Tickets into One").
    """
    raise NotImplementedError("procedure=sup_tickets is not finished")
