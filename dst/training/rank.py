"""A process's rank among those that were started for one run. Without torch, so that errors come at once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """``rank`` of ``world`` processes; ``local_rank`` of the ``local_world`` on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def own_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank in torchrun's environment variables; the rank of a single process if there are none.

    Raises ValueError if the variables are incomplete or contradict each other.
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():  # other programs set one of them
        return Rank()
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing and environment["WORLD_SIZE"] != "1":
        raise ValueError(
            f"RANK and WORLD_SIZE are set in the environment, but not {', '.join(missing)}: start the processes by "
            "torchrun, or unset both to train in one process"
        )
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
    except ValueError as error:
        raise ValueError(f"RANK, WORLD_SIZE and LOCAL_RANK in the environment must be numbers ({error})") from error
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        raise ValueError(
            f"the environment has RANK={rank} of WORLD_SIZE={world} and LOCAL_RANK={local_rank} of {local_world}, "
            "which is impossible: start the processes by torchrun, or unset RANK and WORLD_SIZE to train in one process"
        )
    return Rank(rank, world, local_rank, local_world)
