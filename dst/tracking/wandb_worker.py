"""The process that talks to wandb: reads JSON lines from a run, mirrors them, reports trouble in one line.

Started by ``dst.tracking.wandb_mirror`` as a file. It imports the standard library and wandb, and nobody else imports
wandb.
"""

import json
import os
import queue
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO

Message = tuple[str, dict[str, Any]]

_EXIT_CODES = {"done": 0, "killed": 254}
"""What wandb shows as finished and as crashed; all else has failed."""

_KILLED: Message = ("finish", {"summary": {}, "layers": [], "state": "killed"})

_FLUSH_S = 5.0


_GRACE_S = 5.0


def main() -> None:
    """Mirror one run, from its ``begin`` to its ``finish`` or its death."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    _silence()
    try:
        _mirror(_messages(), reports)
        print("finished", file=reports, flush=True)
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
    run, logged = _init(begin, reports), list[Mapping[str, Any]]()
    for kind, content in messages:
        try:
            _pass_on(run, kind, content, reports)
        except Exception:  # SIGTERM to a whole SLURM step ends wandb's own process; the run still has its last words
            run = _again(run, begin, logged, reports)
            _pass_on(run, kind, content, reports)
        logged.append(content)
    _tear_down()


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

    half = begin["timeout_s"] / 2
    wanted = {
        "silent": True,
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "symlink": False,
        "stop_on_fatal_error": False,
        "stop_fn": _ignore_stop,
        "init_timeout": half,
        "finish_timeout": half,
        "finish_timeout_raises": True,
        "login_timeout": half,
        "x_service_wait": half,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": _FLUSH_S,
    }
    known = wandb.Settings.model_fields  # older versions lack some
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
        settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in known}),
    )
    run.define_metric("*", step_metric="step")  # wandb's own step only grows; ours goes back on a resume
    return run


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
        try:
            run.log({"sparsity/layers": wandb.Table(columns=columns, data=rows)})
        except ValueError as error:  # online, wandb asks the server about tables; the rest must not suffer from it
            print(f"wandb: no table of layers: {_first_line(error)}", file=reports, flush=True)
    if content["state"] == "preempted":
        run.mark_preempting()
    try:
        run.finish(exit_code=_EXIT_CODES.get(content["state"], 1))
    except TimeoutError:
        print(f"wandb: not everything was sent in time; {_later(run)}", file=reports, flush=True)


def _later(run: Any) -> str:
    return f"send it later with: wandb sync {os.path.dirname(run.dir)}"


def _first_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "wandb":
        return "not installed: pip install wandb"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    main()
