"""Topology updates of every method: milliseconds, with nothing left to do on the device before and after."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dst.training.loop import Training
from tests.bench.gpu.plan import Plan
from tests.bench.gpu.table import Row, failure
from tests.bench.gpu.trainings import CONF, Images, Steps, training
from tests.bench.timing import seconds
from tests.composed import compose_cells

NETWORKS: Final[Mapping[str, tuple[Images, str]]] = {
    "vgg_c": (Images(64), "6 ms or less"),
    "resnet50": (Images(64, size=64, classes=1000), "25 ms or less"),  # that of ImageNet; the size changes no weight
}
_QUICK: Final = {"lenet_300_100": (Images(64, 1, 28), "")}
_METHODS_OF_QUICK: Final = ("gmp", "rigl", "static")


def updates(plan: Plan) -> Iterator[Row]:
    """Yield the updates of each method of each network."""
    methods = sorted(path.stem for path in (CONF / "sparsity").glob("*.yaml"))
    for network, (images, target) in (_QUICK if plan.is_quick else NETWORKS).items():
        for method in _METHODS_OF_QUICK if plan.is_quick else methods:
            blank = Row("updates", network, "fp32", method)
            if not _updates(method):
                yield Row("updates", network, "fp32", method, note="its topology is not updated")
            elif plan.clock.is_over:
                yield Row("updates", network, "fp32", method, note="no time was left")
            else:
                try:
                    with plan.clock.piece():
                        found = _measured(plan, network, images, method)
                    value = 1e3 * statistics.median(found)
                    yield Row("updates", network, "fp32", method, value, "ms", target=target and f"target: {target}")
                except Exception as error:
                    yield failure(blank, error)


def _updates(method: str) -> bool:
    ((_, config),) = compose_cells(CONF, [f"sparsity={method}"], multirun=False)
    return config.sparsity.update.every is not None


def _measured(plan: Plan, network: str, images: Images, method: str) -> list[float]:
    """Return the seconds of updates, two of which have warmed up unseen."""
    words = (f"model={network}", f"sparsity={method}", "hardware.capture=never")
    run = training(plan.device, images, *words, "schedule.batch_size=8", "schedule.update_every=2")
    found = _timed(run, plan.device)
    Steps(run, plan.device).each(2 * plan.updates)
    return found[min(2, len(found) - 1) :]


def _timed(run: Training, device: str) -> list[float]:
    """Time all updates of a training from now on; return the list in which their seconds will be."""
    found: list[float] = []
    update = run.sparsifier.update

    def timed(*given: Any, **named: Any) -> bool:
        was_due: list[bool] = []
        taken = seconds(lambda: was_due.append(update(*given, **named)), device)
        found.extend([taken] * was_due[0])
        return was_due[0]

    run.sparsifier.update = timed  # type: ignore[method-assign]
    return found
