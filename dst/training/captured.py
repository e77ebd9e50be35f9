"""Work on the device that is captured once, as graphs, and replayed: the host launches a graph, not each kernel."""

import gc
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dst.signals import KilledError

_LIBRARIES: tuple[Path, ...] = (Path(torch.__file__).parent,)

Found = list[Hashable]
"""Where tensors are, and what they are like; and numbers."""


class CaptureError(RuntimeError):
    """Work cannot be captured; the message says what stood in the way."""


class Graph(Protocol):
    """Work that was captured, to be done again on the same memory."""

    def capture(self, work: Callable[[], None]) -> None:
        """Capture all that ``work`` does on the device, which changes nothing there; raises what it raises."""
        ...

    def replay(self) -> None:
        """Do it."""
        ...


class Graphs(Protocol):
    """Makes graphs."""

    @property
    def held(self) -> int:
        """Bytes of memory that they hold."""
        ...

    def __call__(self) -> Graph:
        """Return a graph, in which nothing is captured yet."""
        ...


class Captured:
    """Work that is captured, and anew when it would be other work by now.

    ``work``: the work as an iterator. Each part, from one ``yield`` to the next, becomes a graph of its own. ``reads``:
    all tensors from outside that it reads or writes, and numbers of the host that hardly ever change. If one of them is
    another than it was, the graphs would read memory that nobody cares for any more, or old numbers, so they are
    dropped. ``graphs``: makes a graph.
    """

    def __init__(
        self,
        graphs: Graphs,
        work: Callable[[], Iterator[None]],
        reads: Callable[[], Iterable[Hashable]],
    ) -> None:
        self._make, self._work, self._reads = graphs, work, reads
        self._graphs: list[Graph] = []
        self._course: Hashable = None
        self._found: Found = []
        self._is_certain = False

    def doubt(self) -> None:
        """Look, before the next replay, whether everything is where it was: something else has worked since."""
        self._is_certain = False

    def holds(self, course: Hashable = None) -> bool:
        """Say whether the work is captured as it would be now; ``course``: further numbers that it depends on."""
        if not self._graphs or course != self._course:
            return False
        self._is_certain = self._is_certain or self._found == self._now()
        return self._is_certain

    def replay(self, before: Callable[[], None] = lambda: None) -> None:
        """Do the captured work, with ``before`` before each of its parts."""
        for graph in self._graphs:
            before()
            graph.replay()

    def capture(self, course: Hashable = None) -> None:
        """Capture the work, to be replayed; CaptureError if it cannot be. Nothing is done on the device."""
        found, parts, graphs = self._now(), self._work(), list[Graph]()
        next(parts)  # up to the first part
        is_over = False

        def part() -> None:
            nonlocal is_over
            is_over = next(parts, self) is self

        while not is_over:
            graphs.append(self._make())
            try:
                graphs[-1].capture(part)
            except KilledError:
                raise
            except Exception as error:
                raise CaptureError(obstacle(error)) from error
        if self._now() != found:
            raise CaptureError("it makes tensors that have to stay, such as an optimizer's state, in the midst of it")
        # Earlier graphs go only now: a pool of memory must not be without any.
        self._graphs, self._course, self._found, self._is_certain = graphs, course, found, True

    def _now(self) -> Found:
        """Return where all is that the work reads and writes."""
        return [
            (one.data_ptr(), one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one
            for one in self._reads()
        ]


def obstacle(error: BaseException) -> str:
    """Return what an error in the midst of a capture says, and where: the innermost place that is no library's."""
    told = (str(error).strip().splitlines() or [type(error).__name__])[0]
    frames = [
        (frame, {path := Path(frame.filename), *path.parents}) for frame in traceback.extract_tb(error.__traceback__)
    ]
    ours = [frame for frame, places in frames if places.isdisjoint(_LIBRARIES)]
    if not ours:
        return told
    return f"{told} (in {ours[-1].name}, {Path(ours[-1].filename).name}:{ours[-1].lineno}: {ours[-1].line})"


class CudaGraphs:
    """Makes CUDA graphs that share one pool of memory, on the present stream, which must not be the default one.

    Of graphs of one pool only one may be at work at a time, and what one leaves there the next may overwrite.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self.held = 0
        """Bytes of device memory that the pool holds."""

    def __call__(self) -> Graph:
        """Return a graph, in which nothing is captured yet."""
        return _CudaGraph(self)

    def capture(self, graph: "torch.cuda.CUDAGraph", work: Callable[[], None]) -> None:
        """Capture the work; whatever it raises, the device is left as if nothing had been tried."""
        failure: list[Exception] = []
        before = 0

        def guarded() -> None:
            nonlocal before
            before = torch.cuda.memory_reserved()
            try:
                work()
            except Exception as error:
                failure.append(error)

        try:
            # Errors of this thread only: others, such as one that samples the machine for a log, do not matter.
            with (
                _undisturbed(),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
                ),
            ):
                guarded()
        except RuntimeError as error:  # the capture was broken, of which the first error tells more
            failure.append(error)
        if failure:
            graph.reset()  # the error leads to it, and would keep what it holds
            _renew_generator()
            raise failure[0]
        self.held += torch.cuda.memory_reserved() - before


class _CudaGraph:
    def __init__(self, graphs: CudaGraphs) -> None:
        self._graphs, self._graph = graphs, torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], None]) -> None:
        self._graphs.capture(self._graph, work)

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a capture have workspaces of its own, and nobody free what was captured earlier in the midst of it.

    Torch keeps a workspace of cuBLAS for each stream, and frees it when any graph of that stream goes, whoever else
    reads and writes there (pytorch 193402). Of one that is made in a capture, and let go after it, the memory is the
    pool's, which lasts as long as its graphs.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if was_enabled:
            gc.enable()


def _renew_generator() -> None:
    """Give the device's generator a state of its own again: a broken capture leaves it as if it were captured still."""
    generator: Any = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
