"""Work on numbered items in child processes, which may crash without this process."""

import faulthandler
import math
import multiprocessing
import os
import resource
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from dst.signals import REQUESTS, die_with_parent

_AT_ONCE = 32
_FEWEST = 500  # starting a process for fewer items costs more than it saves
_MOST_UNREAD = 1 << 16  # bytes that a pipe holds
_LONGEST_SAID = 200
_FORK = multiprocessing.get_context("fork")  # imports are inherited: a process starts in milliseconds

Work = Callable[[int], Any]


@dataclass(frozen=True)
class Answer:
    """The outcome of a number: its ``result``, or the ``failure`` that explains why there is none.

    ``said``: the first line that the work wrote to the standard error stream, as C libraries do.
    """

    number: int
    result: Any = None
    failure: str | None = None
    said: str = ""


def in_children(work: Work, numbers: Sequence[int]) -> Generator[Answer, None, None]:
    """Yield the answer of ``work`` to each number, in any order, from child processes on all processors.

    An exception is a failure. If a child dies, another one takes its place and tries the number again at which it died;
    a number at which two children die is a failure too. Close this generator unless you exhaust it.
    """
    todo = deque(numbers[start : start + _AT_ONCE] for start in range(0, len(numbers), _AT_ONCE))
    children = [_Child(work) for _ in range(min(_processors(), math.ceil(len(numbers) / _FEWEST)))]
    suspects: set[int] = set()
    try:
        while busy := [child for child in children if child.give(todo)]:
            ready = wait([child.pipe for child in busy])
            for child in busy:
                if child.pipe not in ready:
                    continue
                answers = child.answers()
                if answers is None:
                    children[children.index(child)] = _Child(work)
                    answers = _after(child, todo, suspects)
                yield from answers
    finally:
        for child in children:
            child.end()


def _after(dead: "_Child", todo: "deque[Sequence[int]]", suspects: set[int]) -> list[Answer]:
    """Put back what a dead child left undone, its last number first; answer that one if it has failed twice."""
    reason, culprit = dead.end(), dead.at.value
    todo.appendleft([number for number in dead.has if number != culprit])
    if culprit in suspects:
        return [Answer(culprit, failure=f"the decoder crashed: {reason}")]
    suspects.add(culprit)
    todo.appendleft([culprit])
    return []


class _Child:
    """A process that works on the numbers it ``has``; ``at``, in shared memory, is its current number."""

    def __init__(self, work: Work) -> None:
        self.pipe, theirs = _FORK.Pipe()
        self.at = _FORK.RawValue("q", -1)
        self.has: Sequence[int] = ()
        self._process = _FORK.Process(target=_serve, args=(work, theirs, self.at), daemon=True)
        self._process.start()
        theirs.close()  # else this process would not notice when the child ends

    def give(self, todo: "deque[Sequence[int]]") -> bool:
        """Give it the next numbers unless it has some; say whether it has any now."""
        while not self.has and todo:
            self.has = todo.popleft()
            if self.has:
                self.at.value = self.has[0]
                with suppress(OSError):  # it has died: its answer will show that
                    self.pipe.send(self.has)
        return bool(self.has)

    def answers(self) -> list[Answer] | None:
        """Return the answers to all its numbers, which it then no longer has; None if it has died."""
        try:
            answers: list[Answer] = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.has = ()
        return answers

    def end(self) -> str:
        """End it if it is alive; return the signal or exit code that it ended with."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# In the children


def _serve(work: Work, pipe: Connection, at: Any) -> None:
    die_with_parent()
    for stop in REQUESTS:  # the parent ends its children
        signal.signal(stop, signal.SIG_IGN)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump for each damaged file would fill the disk
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # a fork has none of its parent's threads, and each processor has a process
    said = _overheard()
    while True:
        try:
            numbers = pipe.recv()
        except EOFError:
            return
        answers = []
        for number in numbers:
            at.value = number
            answers.append(_answer(work, number, said))
        pipe.send(answers)


def _overheard() -> int:
    """Turn the standard error stream into a pipe that does not block; return its reading end."""
    end, stream = os.pipe()
    for each in (end, stream):
        os.set_blocking(each, False)
    os.dup2(stream, 2)
    os.close(stream)
    return end


def _answer(work: Work, number: int, said: int) -> Answer:
    result, failure = None, None
    try:
        result = work(number)
    except Exception as error:
        failure = " ".join(str(error).split()) or type(error).__name__
    try:
        lines = os.read(said, _MOST_UNREAD).decode(errors="replace").splitlines()
    except BlockingIOError:
        lines = []
    return Answer(number, result, failure, lines[0].strip()[:_LONGEST_SAID] if lines else "")
