"""One run in several processes: the main one leads and keeps the record, the others follow it."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from dst import app
from dst.config import Config, ConfigError
from dst.states import EXIT_CODES
from dst.terminal import leave_at_once
from dst.training.place import Place

if TYPE_CHECKING:
    from dst.training.distributed import Group
    from dst.training.stopping import StopFlag


def together(config: Config, here: Place, stop: "StopFlag", lead: Callable[["Group"], int]) -> int:
    """Run a config in several processes, each of which calls this; return the exit code, in all of them the same.

    ``lead`` is what the main process does: all that is to be done once, such as checking the config and having the data
    ready; then it tells the others by ``tell``, with the config that says by digests what they are to read, and runs
    it. They are let go whatever happens. Raises ConfigError in all of them; that the main one tells it is enough.
    """
    from dst.training.distributed import DismissedError, PeerError, StartError, joined

    hardware = config.hardware
    leave_at_once()  # now and then a thread of gloo wants Python's lock when that ends, and aborts the process
    try:
        with joined(here, hardware.device, strict=hardware.determinism == "strict") as processes, processes.watched():
            if processes.is_main:
                return _led(processes, lead)
            identified: Config = processes.hear()  # that the data is there, and all is well
            return EXIT_CODES[app.follow(identified, stop, processes)]
    except StartError as error:
        raise ConfigError([f"hardware.processes={hardware.processes}: {error}"]) from error
    except DismissedError as end:
        return end.code
    except PeerError as error:
        print(f"error: rank {here.rank}: {error}", file=sys.stderr)
        return EXIT_CODES["failed"]


def _led(processes: "Group", lead: Callable[["Group"], int]) -> int:
    code = EXIT_CODES["failed"]
    try:
        code = lead(processes)
        return code
    except ConfigError:
        code = EXIT_CODES["refused"]
        raise
    finally:
        processes.dismiss(code)
