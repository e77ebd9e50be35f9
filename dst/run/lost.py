"""Training that is lost: a run that was begun, and has no checkpoint from which it could go on."""

from pathlib import Path

from dst.config.schema import Config, ConfigError
from dst.records.read import read_attempts, read_status

REQUIRE = "require"
"""The value of ``output.resume`` by which a run is continued or refused, and never trained from its beginning."""


def lost_training(folder: Path) -> str | None:
    """Return what a run has lost if there is no checkpoint of it; None if it has not trained so far."""
    told = [read_status(folder) or {}, *read_attempts(folder)]
    steps = [about.get(name) for about in told for name in ("step", "started_step")]
    furthest = max((step for step in steps if isinstance(step, int)), default=0)
    if furthest == 0:
        return None
    return f"it had come to step {furthest}, but there is no checkpoint of it in {folder / 'checkpoints'}"


def check_resumable(run: str, found: Path | None, config: Config) -> None:
    """Raise ConfigError if ``output.resume`` requires a run to be continued that has no record or no checkpoint.

    ``found``: its folder, if it has one.
    """
    if config.output.resume != REQUIRE:
        return
    if found is None:
        raise ConfigError(
            [f"output.resume={REQUIRE}: run {run} is not below {Path(config.output.root).absolute()}; {_INSTEAD}"]
        )
    from dst.training.checkpoint import CheckpointError, Checkpoints

    try:
        newest = Checkpoints(found / "checkpoints", run=run).newest()
    except CheckpointError as error:
        raise ConfigError([f"output.resume={REQUIRE}: {error}"]) from error
    if newest is None:
        told = lost_training(found) or f"it has not trained so far, or not up to a checkpoint, in {found}"
        raise ConfigError([f"output.resume={REQUIRE}: run {run}: {told}; restore one, or {_INSTEAD}"])


_INSTEAD = "leave output.resume out to train it from its beginning"
