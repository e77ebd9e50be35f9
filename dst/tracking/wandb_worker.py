"""The process that talks to wandb: reads JSON lines from a run, mirrors them, reports trouble in one line.

Started as a file by ``dst.tracking.wandb_mirror`` for a run that is going on, and by ``dst.launcher.replay`` for
one that is on record. It imports the standard library and wandb, and nobody else imports wandb.
"""

import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO

Message = tuple[str, dict[str, Any]]

_EXIT_CODES = {"done": 0, "killed": 254}
"""What wandb shows as finished and as crashed; all else has failed."""

_KILLED: Message = ("finish", {"summary": {}, "layers": [], "state": "killed"})

_FLUSH_S = 5.0

_GRACE_S = 5.0

_POLL_S = 0.5


class _NotSentError(RuntimeError):
    """A record that did not arrive."""


def main() -> None:
    """Mirror one run, from its ``begin`` to its ``finish`` or its death."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    _silence()
    try:
        _mirror(_messages(), reports)
        print("finished", file=reports, flush=True)
    except _NotSentError as error:
        print(f"wandb: {error}", file=reports, flush=True)
    except Exception as error:
        print(f"wandb: {_first_line(error)}; {_MEND}", file=reports, flush=True)
    finally:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
        os._exit(0)  # what may still hang (exit hooks, threads) is none of ours


_MEND = "the run goes on and its record is complete (tracking=none does without wandb)"


def _silence() -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(devnull, stream)


def _messages() -> Iterator[Message]:
    """Yield the run's messages as they come; a thread reads them, so that its death is seen even if wandb hangs."""
    received: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(received,), daemon=True).start()
    while (message := received.get()) is not None:
        yield message


def _receive(received: "queue.SimpleQueue[Message | None]") -> None:
    limit, kind = 20.0, ""
    for line in sys.stdin.buffer:
        if not line.endswith(b"\n"):  # the run died while writing
            break
        kind, content = json.loads(line)
        limit = content["timeout_s"] if kind == "begin" else limit
        received.put((kind, content))
        if kind == "finish":
            break
    if kind not in ("", "finish"):
        received.put(_KILLED)
    received.put(None)
    # For the case that nobody is left to end this process: a run that lives waits no longer than the limit itself.
    watchdog = threading.Timer(limit + _GRACE_S, os._exit, (1,))
    watchdog.daemon = True
    watchdog.start()


def _mirror(messages: Iterator[Message], reports: TextIO) -> None:
    first = next(messages, None)
    if first is None:
        return
    _, begin = first
    if begin["mode"] == "record":
        _send(begin, messages, reports)
        return
    run, logged = _init(begin, reports), list[Mapping[str, Any]]()
    for kind, content in messages:
        try:
            _pass_on(run, kind, content, reports)
        except Exception:  # SIGTERM to a whole SLURM step ends wandb's own process; the run still has its last words
            run = _again(run, begin, logged, reports)
            _pass_on(run, kind, content, reports)
        logged.append(content)
    _tear_down()


def _send(begin: dict[str, Any], messages: Iterable[Message], reports: TextIO) -> None:
    """Send what the server lacks of a whole record, and wait until it has all; ``_NotSentError`` if it does not."""
    try:
        run = _start(begin, "online")
        rows, end = [], dict[str, Any]()
        for kind, content in messages:
            if kind == "log":
                rows.append(content)
            else:
                end = content
        missing = beyond(rows, run.starting_step, run.summary.get("step"))
        for row in missing:
            run.log(row)
        _finish(run, end, reports)
        _confirm(f"{run.entity}/{run.project}/{run.id}", run.starting_step + len(missing), _share(begin))
    except Exception as error:
        raise _NotSentError(_first_line(error)) from error
    _tear_down()


def beyond(rows: list[dict[str, Any]], lines: int, last: float | None) -> list[dict[str, Any]]:
    """Return the rows that a server lacks which has ``lines`` lines, the last one of step ``last``.

    Sent from a record, a line is a row, and an interrupted sending is gone on with where it ended. Where the lines came
    otherwise (sent while training, until the server was lost), all rows of later steps are missing.
    """
    if lines == 0:
        return rows
    if lines <= len(rows) and rows[lines - 1]["step"] == last:
        return rows[lines:]
    return [row for row in rows if last is None or row["step"] > last]


def _confirm(path: str, lines: int, timeout_s: float) -> None:
    """Wait until the server has this many lines of history.

    wandb counts a run as finished, and exits with 0, also where the server refused all of its history.
    """
    import wandb

    deadline = time.monotonic() + timeout_s
    while True:
        found = wandb.Api(timeout=max(1, int(timeout_s))).run(path).historyLineCount
        if found is None or found >= lines:  # None: an old server that does not say
            return
        if time.monotonic() > deadline:
            raise _NotSentError(f"the server has {found} of {lines} lines of the history")
        time.sleep(_POLL_S)


def _pass_on(run: Any, kind: str, content: Mapping[str, Any], reports: TextIO) -> None:
    if kind == "finish":
        _finish(run, content, reports)
    else:
        run.log(content)


def _again(run: Any, begin: dict[str, Any], logged: list[Mapping[str, Any]], reports: TextIO) -> Any:
    """Start wandb once more. Offline nothing has left the machine, so what is half there is written anew."""
    files, is_offline = os.path.dirname(run.dir), run.offline
    _tear_down()
    if is_offline:
        shutil.rmtree(files, ignore_errors=True)
    run = _init(begin | {"mode": "offline"} if is_offline else begin, reports)
    for content in logged if is_offline else ():
        run.log(content)
    return run


def _tear_down() -> None:
    """End wandb's own process."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def _init(begin: dict[str, Any], reports: TextIO) -> Any:
    """Start wandb's run; offline if the server does not let us.

    ``OSError`` if its folder cannot be written: wandb would then write elsewhere without a word.
    """
    folder = os.path.join(begin["folder"], "wandb")
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {folder}")
    if begin["mode"] == "online":
        try:
            return _start(begin, "online")
        except Exception as error:
            _tear_down()  # or wandb's own process may still hold on to the run's id
            run = _start_offline(begin, folder)
            print(f"wandb: {_first_line(error)}; the run goes on offline, {_later(run)}", file=reports, flush=True)
            return run
    return _start_offline(begin, folder)


def _start_offline(begin: dict[str, Any], folder: str) -> Any:
    """Start offline, and once more if wandb's own process was hit meanwhile."""
    before = set(os.listdir(folder))
    try:
        return _start(begin, "offline")
    except Exception:
        _tear_down()
        for name in set(os.listdir(folder)) - before:
            if name.startswith("offline-run-"):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        return _start(begin, "offline")


def _start(begin: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    import wandb

    run = wandb.init(
        mode=mode,
        dir=begin["folder"],
        id=begin["id"],
        resume="allow",
        name=begin["name"],
        group=begin["group"],
        tags=begin["tags"],
        notes=begin["notes"],
        project=begin["project"],
        entity=begin["entity"],
        job_type="train",
        config=begin["config"],
        settings=_settings(begin),
    )
    run.define_metric("*", step_metric="step")  # wandb's own step only grows; ours goes back on a resume
    return run


def _settings(begin: Mapping[str, Any]) -> Any:
    """Return wandb's settings: silent, patient for so long, and looking at nothing but what it is given."""
    import wandb

    share = _share(begin)
    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "symlink": False,
        "stop_on_fatal_error": False,
        "stop_fn": _ignore_stop,
        "x_start_time": begin.get("start_time"),
        "init_timeout": share,
        "finish_timeout": share,
        "finish_timeout_raises": True,
        "login_timeout": share,
        "x_service_wait": share,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": _FLUSH_S,
    }
    known = wandb.Settings.model_fields  # older versions lack some
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known and value is not None})


def _share(begin: Mapping[str, Any]) -> float:
    """Return how many seconds each part may take: starting, finishing and, of a whole record, being confirmed."""
    return float(begin["timeout_s"]) / (3 if begin["mode"] == "record" else 2)


def _ignore_stop() -> None:
    """Leave the run alone when somebody presses Stop in wandb: this process is not the one to stop."""


def _finish(run: Any, content: Mapping[str, Any], reports: TextIO) -> None:
    """Log the table of layers and the final figures, and wait until all is written or sent."""
    import wandb

    columns: list[str | int] = ["layer", "size", "active", "density", "explored"]
    rows: list[Iterable[Any]] = [
        [row["layer"], row["size"], row["active"], row["active"] / row["size"], row["explored"]]
        for row in content["layers"]
    ]
    run.summary.update(content["summary"])
    if rows:
        table = {"sparsity/layers": wandb.Table(columns=columns, data=rows)}
        try:
            if "must_arrive" in content:  # from a record: there, a line of the history is a row of the record
                run.summary.update(table)
            else:
                run.log(table)
        except ValueError as error:  # online, wandb asks the server about tables; the rest must not suffer from it
            print(f"wandb: no table of layers: {_first_line(error)}", file=reports, flush=True)
    if content["state"] == "preempted":
        run.mark_preempting()
    try:
        run.finish(exit_code=_EXIT_CODES.get(content["state"], 1))
    except TimeoutError:
        if "must_arrive" in content:
            raise
        print(f"wandb: not everything was sent in time; {_later(run)}", file=reports, flush=True)


def _later(run: Any) -> str:
    run_folder = os.path.dirname(os.path.dirname(os.path.dirname(run.dir)))
    return f"send it later with: python -m dst.launcher.sync {run_folder}"


def _first_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "wandb":
        return "not installed: pip install wandb"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    main()
