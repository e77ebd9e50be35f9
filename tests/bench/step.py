"""What masking and topology updates cost: ``python -m tests.bench.step``, which takes six minutes or more on two CPUs.

``--only steps`` (or another part) takes a fraction of that.

VGG-C on CIFAR-shaped batches of 32 at density 0.05 against dense, in one interleaved run; medians, as ratios. Then an
ordinary step of every method in ``conf/sparsity`` against the dense one, and their updates of an ImageNet ResNet-50.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

from dst import registry
from dst.config.schema import complete
from dst.models.vgg import vgg_c
from dst.run.build import build
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.density_schedule import cubic
from dst.sparsity.pattern.constant_fan_in import constant_fan_in
from dst.sparsity.pattern.n_m import n_m
from dst.tracking.pulse import starting
from dst.training.guard import Guard
from dst.training.loop import Training
from dst.training.observer import NoObserver
from dst.training.optimizer import sgd
from tests.bench.timing import seconds
from tests.composed import compose_cells

DENSITY, FRACTION = 0.05, 0.3
CONF = Path(__file__).parents[2] / "conf"
UPDATES = UpdatePlan(every=2, total_steps=10**9, order="replaces_step")
"""Updates alone are timed, so they take the place of steps."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=31, help="samples of each measurement (default 31)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    on = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"cpu, {options.threads} threads"
    print(f"torch {torch.__version__}, {on}, VGG-C, batch 32, density {DENSITY}")
    parts = [name for name in PARTS if name in (options.only or PARTS)]
    if options.only is None:
        print(
            "  all parts take six minutes or more on two CPUs; --only measures some of them, --rounds 5 a bit of each"
        )
    for number, name in enumerate(parts, start=1):
        starting(f"[{number}/{len(parts)}] measuring {name}")
        PARTS[name](options.device, options.rounds)
    starting(None)


def _methods(device: str, rounds: int) -> None:
    """Compare an ordinary step of every method, as the training loop takes it, with the dense step."""
    inputs, labels = torch.randn(32, 1, 32, 32, device=device), torch.randint(10, (32,), device=device)
    names = ["dense", *sorted(path.stem for path in (CONF / "sparsity").glob("*.yaml") if path.stem != "dense")]
    actions = {name: partial(_training(name, device).train_step, inputs, labels, NoObserver()) for name in names}
    times = interleaved(actions, rounds, device)
    for name in names:
        target = "reported" if "momentum" in _needs(name) else "1.03 x or less"
        print_ratio(f"step of {name}", times[name], times["dense"], target)


def _training(method: str, device: str) -> Training:
    """Return the training of a method on VGG-C, its first topology update far away."""
    few_rounds = ["sparsity.distribution.rounds=1", "sparsity.init.rounds=1"] if method == "synflow" else []
    options = [f"sparsity={method}", "model=vgg_c", "data.size=32", "schedule.batch_size=32", *few_rounds]
    length = ["schedule.epochs=100000", "schedule.update_every=1000000", "tracking=none"]
    ((_, config),) = compose_cells(CONF, [*options, *length, f"hardware.device={device}"], multirun=False)
    config.hardware.threads = torch.get_num_threads()
    return build(complete(config)).training


def _needs(method: str) -> frozenset[str]:
    ((_, config),) = compose_cells(CONF, [f"sparsity={method}"], multirun=False)
    return registry.find("grow", config.sparsity.grow.name).marks


def _resnet50(device: str, rounds: int) -> None:
    """Time the topology updates of an ImageNet ResNet-50 (25.5 M weights, density 0.1), in passes over them too."""
    falling = cubic(UpdatePlan(every=2, total_steps=2 * (2 * rounds + 4)), 0.1, initial=0.2, end=1.0)
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "random growth": ({"grow": "random"}, ""),
        "gradient growth": ({"grow": "gradient"}, "0.5 s or less"),
        "global drop, gradient growth": ({"grow": "gradient", "drop_pool": "global"}, "1.2 s or less"),
        "global pruning (GMP)": ({"drop": None, "grow": None, "density_curve": falling}, "1.2 s or less"),
        "global pruning, regeneration (GraNet)": ({"grow": "gradient", "density_curve": falling}, "1.2 s or less"),
        "constant fan-in (SRigL)": ({"pattern": partial(constant_fan_in, ablation=0.3)}, "reported"),
        "2:4": ({"pattern": partial(n_m, n=2, m=4, indivisible="dense"), "density": None, "distribution": None}, ""),
    }
    for name, (options, target) in kinds.items():
        torch.manual_seed(0)
        model = registry.find("model", "resnet50").load()((3, 224, 224), 1000).to(device)
        optimizer = sgd([{"params": list(model.parameters())}], 1e-6, weight_decay=5e-4)
        density = 0.2 if "density_curve" in options else 0.1
        fraction = {} if options.get("grow", "") is None else {"drop_fraction": FRACTION}
        method = Sparsifier(model, optimizer, **{"density": density, "plan": UPDATES, **fraction, **options})
        weights = [layer.weight for layer in method.topology.layers]
        actions = {"pass": partial(_pass_over, weights), "update": partial(_update, method)}
        times = interleaved(actions, rounds, device, lambda weights=weights: _give_gradients(weights))
        passes = statistics.median(times["update"]) / statistics.median(times["pass"])
        print_ratio(f"ResNet-50 update, {name}", times["update"], target=f"{target or 'reported'}; {passes:.1f} passes")


def _update(method: Sparsifier) -> None:
    """Update the topology, as of the next step that has an update by ``UPDATES``."""
    method.steps += 1
    method.step()


@torch.no_grad()
def _pass_over(weights: list[nn.Parameter]) -> None:
    """Read and write all weights once: what a machine needs at least, to compare it with others."""
    torch._foreach_mul_(weights, 1.0)


def _steps(device: str, rounds: int) -> None:
    inputs = torch.randn(32, 3, 32, 32, device=device)
    labels = torch.randint(10, (32,), device=device)
    times = interleaved(
        {"dense": _trainer(inputs, labels, None), "sparse": _trainer(inputs, labels, DENSITY)}, rounds, device
    )
    print_ratio("whole training step, dense", times["dense"])
    print_ratio("whole training step, sparse", times["sparse"], times["dense"], "1.03 x or less")


def _trainer(inputs: Tensor, labels: Tensor, density: float | None) -> Callable[[], None]:
    """Return a training step as in ``dst.training.loop``, without topology updates."""
    model, sparsifier = _sparse_vgg(str(inputs.device), density)
    guard = Guard(sparsifier.optimizer, model)

    def step() -> None:
        loss = F.cross_entropy(model(inputs), labels)
        sparsifier.optimizer.zero_grad()
        loss.backward()
        guard.note(1, guard.judge(loss.detach()))
        sparsifier.step()
        guard.check()

    return step


def _optimizer_steps(device: str, rounds: int) -> None:
    """Compare the masked step with torch's default one, on the same kind of gradients."""
    _, sparsifier = _sparse_vgg(device, DENSITY)
    plain = vgg_c((3, 32, 32), 10).to(device)
    default = torch.optim.SGD(plain.parameters(), 1e-6, momentum=0.9, nesterov=True, weight_decay=5e-4)
    _give_gradients([p for group in sparsifier.optimizer.param_groups for p in group["params"]])
    _give_gradients(plain.parameters())
    times = interleaved({"default": default.step, "masked": sparsifier.step}, rounds, device)
    print_ratio("optimizer step, torch's default SGD", times["default"])
    print_ratio("optimizer step, ours, masked", times["masked"], times["default"], "1.0 x or less")


def _updates(device: str, rounds: int) -> None:
    """Compare a topology update of all layers with the same update by full sorts."""
    _, sparsifier = _sparse_vgg(device, DENSITY, UPDATES)
    sorted_masks = [mask.float() for mask in sparsifier.topology.masks]

    def by_sorting() -> None:
        for i, layer in enumerate(sparsifier.topology.layers):
            sorted_masks[i] = _sorted_update(layer.weight.detach(), layer.weight.grad, sorted_masks[i])

    def fresh_gradients() -> None:
        _give_gradients([layer.weight for layer in sparsifier.topology.layers])

    times = interleaved({"sorts": by_sorting, "ours": partial(_update, sparsifier)}, rounds, device, fresh_gradients)
    print_ratio("topology update, full sorts", times["sorts"])
    print_ratio("topology update, ours, exact", times["ours"], times["sorts"], f"{1 / 6:.3f} x or less")


def _sorted_update(weight: Tensor, gradient: Tensor | None, mask: Tensor) -> Tensor:
    """Drop and grow as the published codes do: one full sort for each."""
    assert gradient is not None
    active = int(mask.sum())
    if active == mask.numel():
        return mask
    moved = math.ceil(FRACTION * active)
    order = torch.sort((weight * mask).abs().flatten()).indices
    kept = mask.flatten().clone()
    kept[order[: mask.numel() - active + moved]] = 0
    order = torch.sort((gradient.abs().flatten() * (kept == 0)), descending=True).indices
    kept[order[:moved]] = 1
    return kept.view_as(mask)


def _sparse_vgg(device: str, density: float | None, plan: UpdatePlan | None = None) -> tuple[nn.Module, Sparsifier]:
    torch.manual_seed(0)
    model = vgg_c((3, 32, 32), 10).to(device)
    optimizer = sgd([{"params": list(model.parameters())}], 1e-6, weight_decay=5e-4)
    distribution = "dense" if density is None else "erk"
    moves = {} if plan is None else {"drop_fraction": FRACTION}
    return model, Sparsifier(model, optimizer, density=density, distribution=distribution, plan=plan, **moves)


def _give_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


PARTS: Mapping[str, Callable[[str, int], None]] = {
    "steps": _steps,
    "optimizer": _optimizer_steps,
    "updates": _updates,
    "methods": _methods,
    "resnet50": lambda device, rounds: _resnet50(device, max(3, rounds // 6)),
}
"""What is measured, in this order."""


def interleaved(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str,
    prepare: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of each action, one of each a round, after two rounds of warming up.

    ``prepare`` comes before every action and is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in tqdm(range(rounds + 2), desc="  rounds", leave=False, disable=None):
        for name, action in actions.items():
            prepare()
            taken = seconds(action, device)
            if number >= 2:
                times[name].append(taken)
    return times


def print_ratio(what: str, times: list[float], against: list[float] | None = None, target: str = "") -> None:
    text = f"  {what:<56} {1e3 * statistics.median(times):9.2f} ms"
    if against is None and target:
        text += f"   (target: {target})"
    if against is not None:
        # Rounds are pairs: the median of their ratios is steadier than the ratio of the medians.
        ratio = statistics.median(a / b for a, b in zip(times, against, strict=True))
        text += f"   {ratio:.3f} x (target: {target})"
    print(text, flush=True)


if __name__ == "__main__":
    main()
