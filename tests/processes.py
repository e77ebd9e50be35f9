"""Whole runs in processes of their own that really die, without importing torch anew for each.

A *nursery* imports everything once, then forks one child a command. A fault makes the child kill itself (SIGKILL:
nothing is flushed, no handler runs) or be signalled at an exact place; the program under test knows nothing of it.
"""

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

from tests.composed import last_given
from tests.states import plain

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    """How a command ended. ``code``: its exit code, or minus the signal that killed it."""

    code: int
    output: str


def run(
    *overrides: str, cwd: Path, fault: str = "", env: dict[str, str] | None = None, conf: Path = REPOSITORY / "conf"
) -> Result:
    """Run ``python run.py`` with these arguments (``last_given``) in ``cwd``, with a fault such as ``kill:step:12``.

    ``env`` is added to the environment; ``conf``: another folder of config files.
    """
    child = _Child(last_given(overrides), str(cwd), str(cwd / "output.txt"), fault, env or {}, str(conf))
    (result,) = _run_children([child])
    return result


def run_together(*overrides: str, cwd: Path, faults: Sequence[str] = ("", "")) -> list[Result]:
    """Run a command as torchrun would, in as many processes as there are faults, one for each rank."""
    places = _places(len(faults))
    return _run_children(
        [
            _Child(last_given(overrides), str(cwd), str(cwd / f"output.{rank}.txt"), fault, places[rank])
            for rank, fault in enumerate(faults)
        ]
    )


def call_together(function: Callable[..., Any], *arguments: Any, cwd: Path, processes: int = 2) -> list[Any]:
    """Call a function of a module in several processes, as torchrun would start them; return what each returned.

    The arguments must be such that JSON keeps them, the results such that torch does.
    """
    words = [_CALL, f"{function.__module__}:{function.__name__}", json.dumps(arguments)]
    places = _places(processes)
    results = _run_children(
        [_Child(words, str(cwd), str(cwd / f"output.{rank}.txt"), "", places[rank]) for rank in range(processes)]
    )
    assert [result.code for result in results] == [0] * processes, "\n".join(result.output for result in results)
    import torch

    return [torch.load(cwd / f"result.{rank}.pt") for rank in range(processes)]


_CALL = "--call"


def _places(world: int) -> list[dict[str, str]]:
    """Return the environment of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


class _Child(NamedTuple):
    words: list[str]
    cwd: str
    output: str
    fault: str
    env: dict[str, str]
    conf: str = str(REPOSITORY / "conf")


def _run_children(children: list[_Child]) -> list[Result]:
    nursery = _nursery()
    assert nursery.stdin
    assert nursery.stdout
    nursery.stdin.write(json.dumps(children) + "\n")
    nursery.stdin.flush()
    codes = json.loads(nursery.stdout.readline())
    return [Result(code, Path(child.output).read_text()) for child, code in zip(children, codes, strict=True)]


@cache
def _nursery() -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.processes"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    # All that a run imports sooner or later, so that no child has to: torch imports _dynamo with the first optimizer, a
    # table pandas.
    for module in ("torch._dynamo", "torch.utils.flop_counter", "pandas", "dst.run.build", "dst.launcher.sweep"):
        importlib.import_module(module)

    for line in sys.stdin:
        started = []
        for child in json.loads(line):
            started.append(os.fork())
            if started[-1] == 0:
                _run_child(*child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
        print(json.dumps(codes), flush=True)


def _run_child(overrides: list[str], cwd: str, output: str, fault: str, env: dict[str, str], conf: str) -> None:
    from dst.cli import main
    from dst.run.terminal import program

    os.environ.update(env)
    os.chdir(cwd)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 99
    try:
        if fault:
            _arm(*fault.split(":"))
        sys.argv = ["run.py", *overrides]
        if "RANK" in env:  # let none wait for ever for another
            signal.alarm(_PATIENCE_S)
        code = (
            _call(*overrides[1:])
            if overrides[:1] == [_CALL]
            else program(lambda: main(overrides, Path(conf)), shows=False)
        )
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(name: str, arguments: str) -> int:
    import torch

    module, _, function = name.partition(":")
    result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    torch.save(result, f"result.{os.environ['RANK']}.pt")
    return 0


_PATIENCE_S = 300

# ---------------------------------------------------------------------------------------------------------------------
# Faults


def _arm(kind: str, *arguments: str) -> None:
    arms = {"kill": _arm_kill, "signal": _arm_signal, "nan": _arm_nan, "fsize": _arm_fsize, "mask": _arm_mask}
    more = {"user": _arm_user, "clock": _arm_clock, "ctrl_c": _arm_ctrl_c, "worker": _arm_worker}
    (arms | more)[kind](*arguments)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before_call(
    owner: Any, name: str, number: int, act: Callable[[], None], counts: Callable[..., bool] = lambda *_, **__: True
) -> None:
    """Replace ``owner.name`` by a function that acts just before its ``number``-th call (from 1) that ``counts``."""
    original, calls = getattr(owner, name), 0

    @wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += bool(counts(*args, **kwargs))
        if calls == number and counts(*args, **kwargs):
            act()
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def _arm_kill(place: str, number: str) -> None:
    """Kill at the n-th time that a place is reached; at a ``step``, by its absolute number, once it is taken."""
    import torch

    if place == "step":
        return _after_step(int(number), _die)
    if place == "half_written":
        torch_save, saves = torch.save, iter(range(1, 1_000_000))

        def save(state: Any, file: Any) -> None:
            torch_save(state, file)
            if next(saves) == int(number):
                file.flush()
                file.truncate(file.tell() // 2)
                _die()

        torch.save = save
        return None
    return _at(place, int(number), _die)


def _at(place: str, number: int, act: Callable[[], None]) -> None:
    """Act at the n-th time that a place is reached."""
    from dst.launcher import sweep
    from dst.procedures import sup_tickets
    from dst.records.store import Record
    from dst.run import attempt, build, feasible
    from dst.sparsity import Sparsifier
    from dst.training import batch_norm, evaluate, loop
    from dst.training.correction import Agent

    if place == "update":
        return _amid_update(number, act)
    owner, name, *counts = {
        "compose": (sweep, "compose_command"),
        "feasible": (feasible, "check"),
        "build": (build, "build"),
        "end": (attempt, "run_report"),  # of a run whose end is on record
        "rename": (os, "replace"),  # of any file of the record
        "checkpoint": (os, "replace", lambda _, path: Path(path).parent.name == "checkpoints"),  # data, then manifest
        "evaluate": (evaluate.F, "cross_entropy", lambda *_, reduction="", **__: reduction == "sum"),  # not the loop's
        "pass": (Agent, "_pass"),  # of a batch, to find out the full gradient
        "end_epoch": (Agent, "end_epoch"),
        "network": (Record, "log_network"),
        "superpose": (sup_tickets, "caa"),
        "prune_back": (sup_tickets, "within"),
        "batch_norm": (batch_norm._Passing, "forward"),  # of a batch, to re-estimate statistics
        "adopt": (loop.Training, "adopt"),
        "anneal": (loop.Training, "take_density"),
        "count": (Sparsifier, "count"),  # of the active weights of learned masks
        "test": (loop.Training, "finish"),
        "summary": (Record, "write_summary"),
    }[place]
    return _before_call(owner, name, number, act, *counts)


def _amid_update(number: int, act: Callable[[], None]) -> None:
    """Act just before the ``number``-th layer (from 1, over all updates) gets its mask, after those before it."""
    from dst.sparsity.topology import Topology

    original, before = Topology.replace_all, 0

    def wrapper(self: Topology, masks: Any) -> None:
        nonlocal before
        own, before = number - before - 1, before + len(masks)
        if 0 <= own < len(masks):
            original(self, dict(list(masks.items())[:own]))
            act()
        original(self, masks)

    Topology.replace_all = wrapper


def _after_step(step: int, act: Callable[[], None]) -> None:
    from dst.training.loop import Training

    original = Training._end_step  # of a step that is taken, and of one that is replayed

    def wrapper(self: Training, *args: Any) -> None:
        original(self, *args)
        if self.counters.step == step:
            act()

    Training._end_step = wrapper


def _arm_signal(name: str, *where: str) -> None:
    """Signal after a step, or at the n-th time that a place is reached."""

    def act() -> None:
        os.kill(os.getpid(), signal.Signals[name])

    *place, number = where
    return _at(*place, int(number), act) if place else _after_step(int(number), act)


def _arm_ctrl_c(times: str, *where: str) -> None:
    """Press Ctrl-C so many times, after a step or at the n-th time that a place is reached."""

    def act() -> None:
        pressed, presses = os.getpid(), os.fork()
        if presses == 0:
            with suppress(ProcessLookupError):  # it may have ended already
                for _ in range(int(times)):
                    os.kill(pressed, signal.SIGINT)
                    time.sleep(0.05)
            os._exit(0)
        os.waitpid(presses, 0)

    *place, number = where
    return _at(*place, int(number), act) if place else _after_step(int(number), act)


def _arm_worker(name: str, step: str) -> None:
    """After a step signal the processes that load images; where that makes them stall, ask the run to stop later."""
    import multiprocessing

    from dst.training import stopping

    def act() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.Signals[name])
        if name == "SIGSTOP":
            stopping._PATIENCE_S = 0.5
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()  # it waits by then

    _after_step(int(step), act)


def _arm_nan(where: str, step: str) -> None:
    """Make the loss, or only a gradient, not finite at a step; or the logits of the n-th evaluation alone."""
    from dst.training import gradients

    if where == "evaluation":
        return _arm_nan_evaluation(int(step))

    original, calls = gradients.F.cross_entropy, iter(range(1, 1_000_000))

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if kwargs.get("reduction") == "sum" or next(calls) != int(step):
            return loss
        if where == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    gradients.F.cross_entropy = poisoned
    return None


def _arm_nan_evaluation(number: int) -> None:
    from dst.training import loop

    original, calls = loop.evaluate, iter(range(1, 1_000_000))

    def poisoned(model: Any, batches: Any, forward: Any, *more: Any) -> Any:
        factor = float("nan") if next(calls) == number else 1.0
        return original(model, batches, lambda inputs: forward(inputs) * factor, *more)

    loop.evaluate = poisoned


def _arm_mask(number: str) -> None:
    """Change one bit of a mask in the n-th update."""
    from dst.sparsity.topology import Topology

    original, calls = Topology.refresh, iter(range(1, 1_000_000))

    def refresh(self: Topology, before: Any = None) -> None:
        if before and next(calls) == int(number):
            mask = self.masks[0].view(-1)
            on, off = mask.nonzero()[0], (~mask).nonzero()[0]
            mask[on], mask[off] = False, True
        original(self, before)

    Topology.refresh = refresh


def _arm_fsize(limit: str) -> None:
    """Let no file grow beyond a number of bytes, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))


def _arm_clock(seconds: str, step: str) -> None:
    """Set the clock by so many seconds after a step."""
    now = time.time

    def set_clock() -> None:
        time.time = lambda: now() + float(seconds)

    _after_step(int(step), set_clock)


def _arm_user(uid: str, gid: str, umask: str, *fault: str) -> None:
    """Be another user, of one group, with a umask (octal); perhaps with a fault besides. For root only."""
    os.environ |= {"HOME": "/nonexistent", "USER": f"user{uid}"}
    import ctypes

    libc, version, reading = ctypes.CDLL(None), 0x20080522, 1 << 2
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    # Reading stays allowed (CAP_DAC_READ_SEARCH, if root has it): Python's own library may lie where only root reads.
    header, sets = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(reading, reading, 0, 0, 0, 0)
    if libc.capset(header, sets) != 0:
        libc.capset(header, (ctypes.c_uint32 * 6)())
    os.umask(int(umask, 8))
    if fault:
        _arm(*fault)


# ---------------------------------------------------------------------------------------------------------------------
# Watching runs that go on elsewhere


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 300.0) -> None:
    """Wait until a condition holds; AssertionError, with what was waited for, if it does not."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def is_moving(folder: Path, attempt: int) -> bool:
    """Say whether an attempt at a run is under way, beyond its beginning.

    Judged by its history, which is written while it happens: its state is written every ten seconds, in which a fast
    machine may end the whole run.
    """
    from dst.records.read import read_metrics, read_status

    status = read_status(folder) or {}
    is_running = status.get("state") == "running" and status["attempt"] == attempt
    return is_running and any(row["attempt"] == attempt for row in read_metrics(folder))


# ---------------------------------------------------------------------------------------------------------------------
# Comparing what runs leave behind


def run_folder(root: Path) -> Path:
    """Return the only run folder below an output root."""
    from dst.records.catalog import find_runs

    (folder,) = find_runs(root)
    return folder


def traces(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves behind, but times and attempt numbers; tensors as their exact bytes."""
    from dst.records.read import read_layers, read_metrics, read_networks, read_summary
    from dst.training.checkpoint import Checkpoints

    state = Checkpoints(folder / "checkpoints").load_newest()
    return {
        "state": plain(state),
        "metrics": plain(read_metrics(folder)),
        "layers": plain(read_layers(folder)),
        "networks": plain(read_networks(folder)),
        "summary": plain(read_summary(folder)),
    }


if __name__ == "__main__":
    _serve()
