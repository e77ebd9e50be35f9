"""What a run takes from outside: its data, and checkpoints of other runs. They are identified by digests.

A config says where these things are. The digests say what they are, and are part of the run's identity. They are looked
up once, on the machine that submits the run. They travel with its config, and the run compares them with what it reads.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from dst import registry
from dst.config.schema import Config, ConfigError, Data, get, with_value
from dst.data import published
from dst.files import read_verified, sha256
from dst.records.groups import counting_in
from dst.records.read import read_status
from dst.records.same import id_in, is_named_by_id, ranked
from dst.records.states import State
from dst.records.store import RecordError
from dst.run.look import look
from dst.run.terminal import program
from dst.run.terms import in_config_terms
from dst.words import one_line

CHECKPOINTS: Final = {
    "model.weights": "model.weights_digest",
    "sparsity.init.path": "sparsity.init.digest",
    "sparsity.distribution.path": "sparsity.distribution.digest",
}
"""Keys that name a run to start from -> keys of the digest of its checkpoint."""

Known = dict[tuple[str, ...], "str | ConfigError"]
"""Digests that were looked up, or the errors, by what was looked up."""

_TRIES: Final = 3
_PAUSE_S: Final = 0.2
_GIVE: Final = "give a run's folder, e.g. outputs/default/<run id>"


def identified(config: Config, known: Known) -> Config:
    """Return a completed config with the digests of everything that its names alone do not identify.

    ``known``: what was looked up before, so that each thing is looked up once for all cells of a command. Raises
    ConfigError if something is not there.
    """
    data = config.data
    if data.digest is None:
        what = ("data", data.name, data.root, data.cache, str(data.download), str(data.path))
        config = with_value(config, "data.digest", _once(known, what, partial(_data_digest, config)))
    return with_checkpoints(config, known)


def with_checkpoints(config: Config, known: Known) -> Config:
    """Return a config with the digests of the checkpoints that it names; see ``identified``."""
    for key, digest_key in CHECKPOINTS.items():
        if get(config, key) is not None and get(config, digest_key) is None:
            found = _once(known, (key, get(config, key)), partial(_newest_digest, config, key))
            config = with_value(config, digest_key, found)
    return config


def going_on(config: Config, folder: Path) -> Config:
    """Return the config from which a run is built that continues from a checkpoint in its own folder.

    That checkpoint holds what the run took from others, which may have been trained further, or be gone. Raises
    ConfigError if the checkpoint cannot be read now.
    """
    from dst.training.checkpoint import CheckpointError, Checkpoints

    given = [key for key in CHECKPOINTS if get(config, key) is not None]
    try:
        if not given or Checkpoints(folder / "checkpoints").newest() is None:
            return config
    except CheckpointError as error:
        raise ConfigError([str(error)]) from error
    for key in given:
        config = with_value(with_value(config, key, str(folder)), CHECKPOINTS[key], None)
    return config


def goes_on(config: Config) -> bool:
    """Say whether a config is one that ``going_on`` has made of an identified one: it takes all from its own run."""
    return any(get(config, key) is not None and get(config, digest) is None for key, digest in CHECKPOINTS.items())


def unfinished(config: Config, key: str) -> Iterator[str]:
    """Yield that the run at a key is not done, so that what its newest checkpoint holds is not its end.

    A run that goes on looks at its own checkpoint (``going_on``), which need not be the end of anything.
    """
    if get(config, CHECKPOINTS[key]) is None:
        return
    folder = place(config, key)
    try:
        state = (read_status(folder) or {"state": State.UNKNOWN})["state"]
    except RecordError as error:
        yield f"{key}={folder}: {error}"
        return
    if state != State.DONE:
        yield (
            f"{key}={folder}: this run is not done, its state is {state}, so that the masks in its newest checkpoint "
            "are not its final ones: finish it first, or give another run"
        )


def sources(config: Config) -> dict[str, str]:
    """Return what an identified config takes from other runs: its key -> the digest of the checkpoint."""
    return {key: get(config, digest_key) for key, digest_key in CHECKPOINTS.items() if get(config, key) is not None}


def _once(known: Known, what: tuple[str, ...], look: Callable[[], str]) -> str:
    if what not in known:
        try:
            known[what] = look()
        except ConfigError as error:
            known[what] = error
    found = known[what]
    if isinstance(found, ConfigError):
        raise found
    return found


# -- data --------------------------------------------------------------------------------------------------------------


def _data_digest(config: Config) -> str:
    from dst.data.cache import content_digest, table_digest
    from dst.data.dataset import DataError, NotHereError  # imports torch, which is slow

    data = config.data
    read = registry.find("data", data.name).load()
    try:
        with in_config_terms("data"):
            if data.path is not None:
                return table_digest(str(data.path))
            return content_digest(data.name, read, root=data.root, cache=data.cache, download=data.download)
    except NotHereError as error:
        where = shlex.quote(str(data.path or data.root))
        raise ConfigError(
            [
                f"{error}. Or, if only other machines see it, say by data.digest=DIGEST which content is meant, as "
                f"python -m dst.run.sources {data.name} {where} prints it there (a run identifies "
                "its data by that)"
            ]
        ) from error
    except DataError as error:
        raise ConfigError([str(error)]) from error


def _published(data: Data) -> str | None:
    """Return the digest of a set whose name fixes its content, if the set is there; None for other sets.

    Raises ConfigError, with the digest, if the content there is another one.
    """
    digest = published.digest(data.name)
    if digest is not None:
        from dst.data.dataset import DataError

        try:
            with in_config_terms("data"):
                registry.find("data", data.name).load()(Path(data.root).expanduser(), download=False, digest=digest)
        except (DataError, OSError) as error:
            raise ConfigError([str(error)]) from error
    return digest


# -- checkpoints of other runs -----------------------------------------------------------------------------------------


def stored(config: Config, key: str) -> dict[str, Any]:
    """Return the tensors by name in the checkpoint of the run folder at a key: weights, or masks as booleans.

    Raises ConfigError, saying what was found, if there are none.
    """
    from dst.network.stored import load, tensors_in
    from dst.sparsity.masks_file import masks_in

    try:
        file = checkpoint(config, key)
        state = load(read_verified(file, get(config, CHECKPOINTS[key])), file)
        return tensors_in(state, "model", file) if key == "model.weights" else masks_in(state, file)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError([f"{key}={get(config, key)}: {error}"]) from error


def place(config: Config, key: str) -> Path:
    """Return the folder of the run at a key: the one that is given or, if it is gone, where that run is now.

    A folder that was renamed is looked for beside it, one that was moved or entered in a group below ``output.root``.
    """
    given = Path(get(config, key))
    run, root = id_in(given.name), config.output.root
    if os.path.lexists(given) or not is_named_by_id(given.with_name(run)):
        return given
    try:
        beside = counting_in(given.parent).get(run)
        moved = None if beside else look([root]).runs[root].get(run)
    except (OSError, ConfigError):  # that the folder is gone is said by who reads it
        return given
    return beside or (ranked({run: moved})[run][0].folder if moved else given)


def checkpoint(config: Config, key: str) -> Path:
    """Return the checkpoint file of the run folder at a key: the one with the config's digest, or the newest.

    Raises ConfigError, with both digests, if the folder has only others.
    """
    from dst.training.checkpoint import CheckpointError, Checkpoints

    folder, digest = place(config, key), get(config, CHECKPOINTS[key])
    _check_folder(config, key)
    try:
        found = None if digest is None else Checkpoints(folder / "checkpoints").with_digest(digest)
    except CheckpointError as error:
        raise ConfigError([f"{key}={folder}: {error}; {_GIVE}"]) from error
    if found is not None:
        return found
    newest, its_digest = _newest(config, key)
    if digest not in (None, its_digest):
        raise ConfigError(
            [
                f"{key}={folder}: the checkpoint with the digest {digest}, which identifies this run "
                f"({CHECKPOINTS[key]}), is not there any more; {newest.name} is, with {its_digest}: the source has "
                "been trained on, or changed. Run the command again, without that digest, to start from what is there "
                "now, which is another run"
            ]
        )
    return newest


def _newest_digest(config: Config, key: str) -> str:
    given, found = Path(get(config, key)), place(config, key)
    digest = _newest(config, key)[1]
    if found != given:
        print(f"note: {key}={one_line(str(given))}: that run is in {one_line(str(found))} now", file=sys.stderr)
    return digest


def _newest(config: Config, key: str) -> tuple[Path, str]:
    """Return the newest checkpoint of the run folder at a key, and its digest.

    A source that is still training replaces its checkpoints, so this tries several times before it says that there is
    none.
    """
    _check_folder(config, key)
    folder = place(config, key) / "checkpoints"
    none = ConfigError(
        [
            f"{key}={get(config, key)}: there is no checkpoint; {_GIVE}. A run that was begun from one which is gone "
            f"goes on with {CHECKPOINTS[key]}=DIGEST, as its config.yaml has it"
        ]
    )
    if _is_absent(folder):  # said without torch, which takes seconds to import
        raise none
    from dst.training.checkpoint import CheckpointError, Checkpoints

    for attempt in range(_TRIES):
        time.sleep(_PAUSE_S * (attempt > 0))
        try:
            newest = Checkpoints(folder).newest()
            if newest is not None:
                return newest, sha256(newest.read_bytes())
        except FileNotFoundError:
            continue
        except (CheckpointError, OSError) as error:
            raise ConfigError([f"{key}={get(config, key)}: {error}; {_GIVE}"]) from error
        if not folder.is_dir():
            break
    raise none


def _check_folder(config: Config, key: str) -> None:
    """Raise ConfigError, with the run that may be meant, if the path at a key is a file or a folder of checkpoints."""
    given = Path(get(config, key))
    if given.exists() and not given.is_dir():
        what = f"{key}={given} is a file"
    elif given.name == "checkpoints" and given.is_dir():
        what = f"{key}={given} is a folder of checkpoints"
    else:
        return
    run = next((above for above in given.parents if (above / "run.json").exists()), None)
    raise ConfigError([f"{what}, and no run's folder; {_GIVE if run is None else f'give {run}'}"])


def _is_absent(folder: Path) -> bool:
    try:
        folder.lstat()
    except FileNotFoundError:
        return True
    except OSError:  # reading it says why
        return False
    return False


# -- python -m dst.run.sources -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Print the digest of a data set; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dst.run.sources",
        description="Print the digest of the data in a folder, by which a run identifies it (data.digest).",
    )
    parser.add_argument("name", help="the kind of set, as data.name, e.g. image_folder")
    parser.add_argument("place", help="the folder that holds it, as data.root, or a table's file, as data.path")
    parser.add_argument("--cache", default="outputs/.cache", help="where digests are noted, as data.cache")
    given = parser.parse_args(arguments)
    try:
        place = "path" if "path" in registry.find("data", given.name).options else "root"
        data = Data(name=given.name, cache=given.cache, download=False, **{place: given.place})
        print(_published(data) or _data_digest(Config(data=data)))
    except (ConfigError, registry.UnknownNameError) as error:
        print(error.text() if isinstance(error, ConfigError) else f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
