"""Several processes that train one network on shares of every batch, and a single process that trains alone.

All processes hold the same weights and masks. They start from those of the main process (rank 0) and change them in
the same way, since gradients are summed over all processes and random numbers are derived from names. The masks are
compared at the start and at every update. What changes the course of a run (a request to stop, that it is time to save,
a loss that is not finite) reaches all processes at the same step.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from socket import gethostname
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dst.data.shard import Shard
from dst.sparsity.topology import Topology
from dst.training.rank import Rank

_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another that is alive but does not answer, e.g. while it decodes a data set."""


class StartError(ValueError):
    """The processes were started in a way in which they cannot be joined."""


class PeerError(ConnectionError):
    """Another process of the run has ended or cannot be reached."""


class DesynchronisedError(RuntimeError):
    """The processes do not hold the same masks."""


class DismissedError(Exception):
    """The main process has ended before training began, with exit code ``code``."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"the main process ended with exit code {code}")


def accumulation_parts(tensor: Tensor, count: int, world: int) -> Sequence[Tensor]:
    """Return the parts of a process's samples whose gradients are accumulated.

    A single process uses ``chunk``, as it always has, which may make fewer parts than ``count``. Several processes must
    all have the same number of parts.
    """
    return tensor.chunk(count) if world == 1 else tensor.tensor_split(count)


class Processes:
    """The processes of a run. This class is a single process: it communicates with no other and costs nothing."""

    rank = 0
    world = 1

    @property
    def is_main(self) -> bool:
        """Say whether this is the process that keeps the record."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """The part of every batch that this process takes."""
        return Shard(self.rank, self.world)

    @property
    def seed_path(self) -> tuple[int, ...]:
        """The part of the names of random numbers that makes them differ between processes (dropout)."""
        return () if self.is_main else (self.rank,)

    # -- a step --------------------------------------------------------------------------------------------------------

    def replica(self, model: nn.Module) -> nn.Module:
        """Return the module to call, instead of a model, in forward passes whose gradients are needed."""
        return model

    def parts(self, tensor: Tensor, count: int) -> Sequence[Tensor]:
        """Return the parts of a batch whose gradients are accumulated; every process has the same number of parts."""
        return accumulation_parts(tensor, count, self.world)

    def local(self, replica: nn.Module) -> AbstractContextManager[Any]:
        """Return a context for all backward passes of a step except the last."""
        return nullcontext()

    def to_sum(self, loss: Tensor) -> Tensor:
        """Return the loss to call ``backward`` on, given this process's share of the loss of the batch."""
        return loss

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of a step over all processes, unless its backward passes have done so."""

    def sum_apart(self, gradients: Sequence[Tensor]) -> None:
        """Sum over all processes, in place, gradients of a step that are no parameter's."""

    def total(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the sums of scalars over all processes, on their device and without waiting for it."""
        return values

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the main process."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with their means over all processes."""

    # -- agreement -----------------------------------------------------------------------------------------------------

    def agree(self, *wishes: bool) -> tuple[bool, ...]:
        """Return for each wish whether any process has it; all processes call this at every step."""
        return wishes

    def any_name(self, name: str | None) -> str | None:
        """Return the name that a process gives, the first one if several do; None if none does."""
        return name

    def check_masks(self, topology: Topology, when: str) -> None:
        """Raise DesynchronisedError, in all processes, if their masks differ."""

    # -- who leads -----------------------------------------------------------------------------------------------------

    def tell(self, message: Any, *, is_last: bool = False) -> None:
        """Send a message to the others, which wait in ``hear``; ``is_last``: it is the last one before training."""

    def hear(self) -> Any:
        """Wait for a message of the main process; DismissedError if that ends without one."""
        raise AssertionError("a single process has no other to hear from")

    def watched(self) -> AbstractContextManager[None]:
        """Return a context in which the loss of another process is a PeerError."""
        return nullcontext()


ALONE = Processes()


@dataclass(frozen=True)
class _Dismissal:
    code: int


class Group(Processes):
    """Several processes: one of them, joined with its peers by ``joined``.

    Gradients are summed by one all-reduce of them all after the backward passes, always in the same order.
    """

    def __init__(self, rank: int, world: int, device: str) -> None:
        self.rank, self.world = rank, world
        # On a GPU the answer to a wish is read a step later, so that no process waits for another.
        self._delay = 0 if device == "cpu" else 1
        self._asked: list[tuple[dist.Work, Tensor]] = []
        self._leads = self.is_main

    # -- a step --------------------------------------------------------------------------------------------------------

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum them all together."""
        _jointly([p.grad for p in parameters if p.grad is not None], dist.all_reduce)

    def sum_apart(self, gradients: Sequence[Tensor]) -> None:
        """Sum them all together."""
        _jointly(gradients, dist.all_reduce)

    def total(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Sum in float64, in which counts are exact."""
        sums = torch.stack([value.double() for value in values])
        dist.all_reduce(sums)
        return tuple(sums.unbind())

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Broadcast them all together."""
        _jointly([tensor.detach() for tensor in tensors], lambda joint: dist.broadcast(joint.view(torch.uint8), src=0))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Sum them all together, and divide."""
        _jointly(tensors, lambda joint: dist.all_reduce(joint.div_(self.world)))

    # -- agreement -----------------------------------------------------------------------------------------------------

    def agree(self, *wishes: bool) -> tuple[bool, ...]:
        """Ask by a message between the hosts, beside the device. A wish that any process has is answered once."""
        flags = torch.tensor(wishes, dtype=torch.uint8)
        self._asked.append((dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags))
        if len(self._asked) <= self._delay:
            return (False,) * len(wishes)
        heard = self._answer()
        while any(heard) and self._asked:  # the same wishes, asked again before this answer
            self._answer()
        return heard

    def _answer(self) -> tuple[bool, ...]:
        work, flags = self._asked.pop(0)
        work.wait()
        return tuple(flags.bool().tolist())

    def any_name(self, name: str | None) -> str | None:
        """Ask all for their names."""
        names: list[str | None] = [None] * self.world
        dist.all_gather_object(names, name)
        return next((name for name in names if name), None)

    def check_masks(self, topology: Topology, when: str) -> None:
        """Compare a checksum of every mask."""
        ours = torch.stack([checksum(mask) for mask in topology.masks])
        everyone = [torch.empty_like(ours) for _ in range(self.world)]
        dist.all_gather(everyone, ours)
        differs = (torch.stack(everyone) != everyone[0]).cpu()
        if not differs.any():
            return
        ranks = differs.any(1).nonzero().flatten().tolist()
        layers = [topology.layers[i].name for i in differs.any(0).nonzero().flatten().tolist()]
        raise DesynchronisedError(
            f"{when}: the masks of rank {', '.join(map(str, ranks))} are not those of rank 0 (of {self.world} ranks), "
            f"in layers {', '.join(layers)}; nothing was saved since. Run the same command to continue from the last "
            "checkpoint; if it happens again, a part of the method depends on more than the gradients and the seed"
        )

    # -- who leads -----------------------------------------------------------------------------------------------------

    def tell(self, message: Any, *, is_last: bool = False) -> None:
        """Broadcast from the main process."""
        dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))
        self._leads = self._leads and not is_last

    def hear(self) -> Any:
        """Receive what the main process broadcasts."""
        message: list[Any] = [None]
        dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        if isinstance(message[0], _Dismissal):
            raise DismissedError(message[0].code)
        return message[0]

    def dismiss(self, code: int) -> None:
        """Tell processes that still wait for the main process that it has ended."""
        if self._leads:
            self.tell(_Dismissal(code), is_last=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Translate the errors of the back ends, which only their text tells apart."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                reason = str(error).splitlines()[0]
                raise PeerError(f"lost another of the {self.world} processes; its output says why: {reason}") from error
            raise


class OverlappingGroup(Group):
    """As ``Group``, but gradients are summed by DistributedDataParallel while the backward pass computes others.

    It arranges gradients in the order of a process's first step, so the order of summation changes after that step.
    A continued run of three processes or more therefore sums in another order than an undisturbed run.
    """

    def replica(self, model: nn.Module) -> nn.Module:
        """Wrap the model, which stays as it is; its buffers are left to ``share``."""
        on_gpu = next(model.parameters()).device.type == "cuda"
        with warnings.catch_warnings():  # not all supported versions of PyTorch have its successor
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            devices = [torch.cuda.current_device()] if on_gpu else None
            return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def local(self, replica: nn.Module) -> AbstractContextManager[Any]:
        """Return DistributedDataParallel's own context."""
        assert isinstance(replica, DistributedDataParallel)
        return replica.no_sync()

    def to_sum(self, loss: Tensor) -> Tensor:
        """Undo that DistributedDataParallel divides by the number of processes."""
        return loss * self.world

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Do nothing: the backward pass has summed them."""

    def sum_apart(self, gradients: Sequence[Tensor]) -> None:
        """Sum them all together, and undo that ``to_sum`` has multiplied them."""
        _jointly(gradients, lambda joint: dist.all_reduce(joint.div_(self.world)))


def _jointly(tensors: Sequence[Tensor], collective: Callable[[Tensor], Any]) -> None:
    """Carry out a collective in place on many tensors, all tensors of one type together."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        joint = torch.cat([tensor.flatten() for tensor in alike])
        collective(joint)
        for tensor, part in zip(alike, torch.split(joint, [t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view(tensor.shape))


@contextmanager
def joined(own: Rank, device: str, *, strict: bool) -> Iterator[Group]:
    """Join the processes of a run, all of which have been started, and leave them at the end.

    ``device``: ``cuda`` (NCCL, each process with a GPU of its own) or ``cpu`` (gloo). ``strict``: a continued run sums
    gradients in the order of an undisturbed one. Raises StartError if GPUs are too few or shared.
    """
    if device == "cuda":
        _take_gpu(own)
    # gloo also with GPUs: for messages between hosts
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=own.rank, world_size=own.world, timeout=_TIMEOUT)
    if device == "cuda":
        _check_gpus(own.world)
    yield (Group if strict else OverlappingGroup)(own.rank, own.world, device)
    dist.destroy_process_group()  # not after an error: it would wait for peers that may wait for us


def _take_gpu(own: Rank) -> None:
    found = torch.cuda.device_count()
    if found == 0:
        raise StartError(f"device=cuda: PyTorch finds no CUDA GPU on this machine ({gethostname()}); use device=cpu")
    if 1 < found < own.local_world:
        raise StartError(
            f"{own.local_world} processes were started on this machine ({gethostname()}), which has {found} GPUs: "
            "start one for each GPU"
        )
    torch.cuda.set_device(own.local_rank if found > 1 else 0)  # some launchers show each process only its own


def _check_gpus(world: int) -> None:
    identifiers: list[str] = [""] * world
    dist.all_gather_object(identifiers, str(torch.cuda.get_device_properties().uuid))
    if len(set(identifiers)) < world:
        raise StartError(f"{world} processes were started on {len(set(identifiers))} GPUs: start one for each GPU")


@torch.no_grad()
def checksum(mask: Tensor) -> Tensor:
    """Return a checksum of a boolean tensor: int64, on its device, the same on every device.

    Words of eight elements are mixed with their positions and summed modulo 2^64, in any order. A difference in one
    word always shows; any other goes unnoticed in one case of 2^64.
    """
    octets = mask.flatten().view(torch.uint8)
    words = F.pad(octets, (0, -octets.numel() % 8 + 8)).view(torch.int64)  # padding copies, and so aligns
    return _mixed(words + _mixed(torch.arange(len(words), device=mask.device))).sum()


def _mixed(words: Tensor) -> Tensor:
    """Return pseudo-random numbers, different for different int64 (the finaliser of SplitMix64, Steele 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ _shifted(words, shift)) * factor
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as unsigned numbers are."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
