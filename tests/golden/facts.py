"""What commands come to, without training: the golden facts of today's code.

``python -m tests.golden.facts`` computes them anew and says what differs from ``facts.json``; ``--write`` replaces it.

They are, of every method and of many commands: the config, the run's id, how many weights are active in which layer
before the first step, and the FLOPs; or with which words a command is refused. Nothing in them depends on the machine:
data is pretended to be there, in the number and shape of the original, and counts that follow from how floats compare
are left out.
"""

import argparse
import io
import json
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dst.cli import main as command_line
from dst.config.checks import check
from dst.config.compose import compose_command
from dst.config.identity import id_of, identity
from dst.config.schema import Config, ConfigError, complete, flatten, get, with_value
from dst.data.cache import load
from dst.data.dataset import Dataset, Split
from dst.data.files import Files
from dst.data.resize import Resize

# All that is known of the package is named here, since modules move.
from dst.run import build as building
from dst.run import feasible
from dst.run import forecast as forecasting
from dst.run.cell import Cell
from dst.run.sources import CHECKPOINTS, identified

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
FILE = Path(__file__).with_name("facts.json")
Facts = dict[str, dict[str, Any]]

METHODS = sorted(path.stem for path in (CONF / "sparsity").glob("*.yaml"))
SMALL = dict.fromkeys(("dsb", "ssb"), " sparsity.pattern.block_size=4")
"""Layers of 20, 50 and 500 outputs are in no blocks of 16."""
CIFAR = "data=cifar10 schedule=itop_cifar schedule.epochs=20"
IMAGENET = f"data=imagenet data.digest={'1' * 64} schedule.epochs=6"
STATISTICS = "data.mean=[0.5,0.5,0.5] data.std=[0.25,0.25,0.25]"
SOURCE = "outputs/default/source"

COMMANDS: tuple[str, ...] = (
    "",
    *(f"sparsity={method}" for method in METHODS),
    *(f"sparsity={method}{SMALL.get(method, '')} data=mnist model=lenet_5 schedule=mnist seed=3" for method in METHODS),
    # models and data sets
    "data=mnist model=lenet_300_100 schedule=mnist sparsity=set schedule.update_every=422 sparsity.density=0.05",
    "data=fashion_mnist model=lenet_5 schedule=mnist sparsity=granet sparsity.density=0.02",
    f"{CIFAR} model=mlp_cifar10 sparsity=set_itop sparsity.density=0.01",
    f"{CIFAR} model=alexnet_s sparsity=snip sparsity.density=0.1",
    f"{CIFAR} model=alexnet_b sparsity=set",
    f"{CIFAR} model=vgg_c sparsity=rigl_itop schedule.update_every=4000 sparsity.density=0.05",
    f"{CIFAR} model=vgg_d sparsity=snfs sparsity.density=0.2",
    f"{CIFAR} model=vgg_like sparsity=static sparsity.distribution.name=uniform_plus",
    "data=cifar100 model=vgg16 schedule=granet_cifar sparsity=granet sparsity.density=0.1",
    "data=cifar100 model=vgg19 schedule=granet_cifar sparsity=gmp schedule.multiplier=2",
    "data=cifar10 model=resnet18 schedule=rigl_cifar schedule.epochs=12 sparsity=rigl",
    "data=cifar10 model=resnet20 schedule=shuffled_cifar sparsity=srigl sparsity.density=0.2",
    "data=cifar10 model=resnet32 schedule=shuffled_cifar sparsity=nm_rigl",
    f"{CIFAR} model=resnet34 sparsity=rigl sparsity.update.stop=0.5",
    f"{CIFAR} model=resnet50_cifar sparsity=random_pruning sparsity.distribution.name=er",
    f"{CIFAR} model=wrn_16_8 sparsity=dense model.dropout=0.1",
    f"{CIFAR} model=wrn_16_10 sparsity=dst sparsity.density=0.5",
    "data=cifar10 model=wrn_22_2 schedule=rigl_cifar sparsity=rigl sparsity.density=0.1",
    f"{CIFAR} model=wrn_22_8 sparsity=gmp_uniform",
    f"{CIFAR} model=wrn_28_2 sparsity=granet_uniform data.augment.crop_padding=2 data.augment.padding_mode=zeros",
    f"{CIFAR} model=wrn_28_10 sparsity=rigl_itop sparsity.distribution.clip=true",
    f"data=tiny_imagenet data.digest={'2' * 64} {STATISTICS} model=resnet18_imagenet schedule=granet_imagenet "
    "schedule.epochs=6 schedule.update_every=1000 sparsity=granet_uniform",
    f"{IMAGENET} schedule=itop_imagenet model=resnet34_imagenet model.init=fan_in sparsity=set_itop",
    f"{IMAGENET} schedule=rigl_imagenet model=resnet50 sparsity=rigl sparsity.density=0.2 schedule.accumulate=32",
    f"{IMAGENET} schedule=shuffled_imagenet model=resnet101 sparsity=static sparsity.distribution.name=uniform",
    f"data=image_folder data.root=pictures data.digest={'3' * 64} data.size=64 {STATISTICS} model=resnet152 "
    "sparsity=static schedule.epochs=2 schedule.batch_size=256",
    "data=tabular data.path=wine model.batch_norm=true sparsity=rigl schedule.update_every=9",
    "data=cifar10 model=vit_tiny schedule=vit_cifar schedule.epochs=20 sparsity=rigl_itop sparsity.density=0.2",
    f"{IMAGENET} schedule=vit_cifar model=vit_b_16 sparsity=set_itop sparsity.density=0.2",
    # what wraps a method
    "correction=agent",
    f"{CIFAR} model=vgg_c sparsity=rigl correction=agent correction.every_epochs=3 correction.proxy=gradient",
    # parts of a method
    "sparsity=set_itop sparsity.init.name=bernoulli sparsity.grow.name=random_unexplored",
    "sparsity=set_itop sparsity.drop.name=taylor sparsity.drop.pool=global sparsity.grow.name=momentum_neuron",
    "sparsity=set_itop sparsity.drop.name=random sparsity.redistribute.name=magnitude sparsity.update.start=0.1",
    "sparsity=set_itop sparsity.drop.name=threshold sparsity.drop.value=0.001 sparsity.redistribute.name=nonzeros "
    "sparsity.drop_fraction.name=none sparsity.drop_fraction.initial=null sparsity.drop_fraction.floor=null "
    "sparsity.drop_fraction.horizon=null",
    "sparsity=set_itop sparsity.drop.name=threshold sparsity.drop.quantile=0.2 sparsity.drop_fraction.name=none "
    "sparsity.drop_fraction.initial=null sparsity.drop_fraction.floor=null sparsity.drop_fraction.horizon=null",
    "sparsity=rigl sparsity.drop_fraction.name=linear sparsity.drop_fraction.initial=0.4 sparsity.update.regrow=false",
    "sparsity=rigl sparsity.update.grown_weights=initial sparsity.update.returning_weights=reset "
    "sparsity.update.on_last_step=true sparsity.update.stop=1.0",
    "sparsity=static sparsity.init.name=magnitude sparsity.distribution.name=magnitude",
    "sparsity=snip sparsity.distribution.name=gradient sparsity.init.criterion=gradient",
    "sparsity=granet sparsity.density_schedule.initial=0.8 sparsity.density_schedule.ends_early=true "
    "sparsity.density_schedule.end=0.7 sparsity.density_schedule.start=0.1",
    "sparsity=rigl_itop sparsity.distribution.classifier=0.5 sparsity.distribution.name=erk",
    "sparsity=nm_rigl sparsity.pattern.n=1 sparsity.pattern.m=8 model.hidden=[64,32]",
    "sparsity=static sparsity.pattern.name=constant_fan_in sparsity.density=0.25 sparsity.label=mine",
    "sparsity=rigl_itop sparsity.scope.dense_first=true sparsity.scope.dense_last=true model.hidden=[64,48,32]",
    "sparsity=static sparsity.scope.exclude=[fc4] sparsity.scope.include=[conv*,fc3,fc4] data=mnist model=lenet_5",
    *(
        f"sparsity=static sparsity.distribution.name=none sparsity.density=null sparsity.init.rate=0.5 "
        f"sparsity.init.name={name}"
        for name in (
            *("prune_uniform", "prune_global", "prune_structured"),
            *("prune_and_grow_uniform", "prune_and_grow_global", "prune_and_grow_structured"),
        )
    ),
    f"sparsity=static sparsity.distribution.name=none sparsity.density=null sparsity.init.name=file "
    f"sparsity.init.path={SOURCE} sparsity.init.digest={'4' * 64}",
    f"model.weights={SOURCE} model.weights_digest={'5' * 64} sparsity=static",
    "sparsity=static sparsity.distribution.name=balanced",
    f"{CIFAR} model=resnet18 sparsity=random_pruning sparsity.distribution.name=balanced sparsity.density=0.3 "
    "sparsity.distribution.clip=true",
    f"{CIFAR} model=resnet18 sparsity=random_pruning sparsity.distribution.name=pyramidal sparsity.density=0.3",
    f"sparsity=rigl sparsity.distribution.name=from_run sparsity.density=0.5 sparsity.distribution.path={SOURCE} "
    f"sparsity.distribution.digest={'6' * 64}",
    # schedules, selection, interpolation
    "schedule.select=best_val schedule.eval_every_epochs=5 schedule.epochs=20 sparsity=gmp",
    "schedule.optimizer.name=adamw schedule.optimizer.beta2=0.99 schedule.lr.name=constant schedule.lr.peak=0.001 "
    "schedule.optimizer.decay=not_norms",
    "schedule.optimizer.momentum=0.8 schedule.optimizer.nesterov=false schedule.lr.floor=0.01 "
    "schedule.lr.warmup_epochs=2",
    "schedule.multiplier=3 schedule.epochs=7 schedule.label_smoothing=0.1 schedule.lr.name=multistep "
    "schedule.lr.milestones=[0.3,0.6] schedule.lr.gamma=0.5",
    "sparsity.density='${schedule.lr.peak}' seed='${schedule.epochs}' schedule.epochs=4",
    "schedule.epochs='${oc.decode:\"9\"}' output.group='g_${seed}' seed=11 tracking.tags='[a,${seed}]'",
    "'sparsity={density: 0.3, drop: {name: random}}' 'schedule={epochs: 5, lr: {peak: 0.05}}'",
    "data.val_fraction=0.2 data.split_seed=4 data.size=16 data.mean=[0.3] data.std=[0.3] data.augment.flip=true",
    "data.augment.crop_padding=1 schedule.batch_size=96 schedule.accumulate=3",
    # what wraps a method
    "correction=none procedure=single",
    "sparsity=granet correction=agent correction.every_epochs=2 correction.clip=true",
    "procedure=sup_tickets",
    "sparsity=set_itop procedure=sup_tickets procedure.pretrain_epochs=40 procedure.cycle_epochs=5 "
    "procedure.lr=constant procedure.re_explore=0.5 procedure.superpose=cima procedure.include_pretrained=false "
    "model=resnet20",
    "sparsity=rigl_itop correction=agent procedure=sup_tickets procedure.freeze_updates=false "
    "procedure.average_over=active procedure.pool=layer procedure.prune_back=end schedule.update_every=20",
    "procedure=imp",
    "sparsity=static sparsity.init.name=bernoulli sparsity.density=0.3 procedure=imp procedure.density=0.05 "
    "procedure.keep=0.5 procedure.level_epochs=3 procedure.rewind=epoch procedure.rewind_epoch=1 "
    "procedure.criterion=snip correction=agent",
    "+experiment=itop/rigl",
    "+experiment=agent/set",
    "+experiment=sup_tickets/cifar_granet",
    "+experiment=random_pruning/static",
    "+experiment=random_pruning/er_dst",
    "+experiment=random_pruning/imp",
    "+experiment=random_pruning/strong_tickets",
    "+experiment=shuffled_blocks/wrn_cifar10",
    "+experiment=shuffled_blocks/vgg_cifar100_ssb",
    f"+experiment=shuffled_blocks/resnet50_tiny_imagenet data.digest={'2' * 64} model=resnet18",
    "sparsity=edge_popup procedure=anneal procedure.start=0.5 procedure.levels=3 procedure.level_epochs=10",
    "sparsity=edge_popup sparsity.distribution.name=dense sparsity.density=null",
    "data=cifar10 schedule=er_cifar model=vgg16 sparsity=random_pruning sparsity.distribution.name=er "
    "model.init=signed_constant model.bias_scale=0 'model.init_density=${sparsity.density}'",
    "data=cifar100 schedule=er_dst_cifar model=resnet18 model.init=looks_linear sparsity=gmp "
    "sparsity.distribution.name=erk sparsity.density_schedule.initial=0.01 sparsity.density=0.001",
    "data.val_fraction=0 schedule.clip_norm=1 schedule.clip_value=0.5 schedule.max_steps=100",
    # hardware, tracking and what changes no result
    "hardware=gpu",
    "hardware=gpu_bf16 data=cifar10 model=resnet20 schedule=granet_cifar",
    "hardware=ddp hardware.sync_batch_norm=true data=cifar10 model=resnet20 schedule=granet_cifar",
    "hardware=slurm hardware.slurm.partition=gpu hardware.slurm.gpus=1 hydra.launcher.max_parallel=4",
    "hardware=slurm_ddp hardware.processes=4 hardware.slurm.nodes=2",
    "hardware=site_example hydra.launcher.runs_per_job=2",
    "hydra/launcher=local hydra.launcher.wait=true seed=5",
    "hardware.determinism=fast hardware.threads=1 hardware.precision=bf16 hardware.channels_last=true "
    "hardware.compile=true",
    "hardware=gpu_bf16 hardware.compile_mode=reduce-overhead hardware.capture=never",
    "hardware=gpu hardware.capture=always",
    "tracking=none output.root=elsewhere output.resume=never checkpoint.every_min=5 checkpoint.keep=3 "
    "hardware.workers=2 data.storage=resident",
    "tracking=wandb_online tracking.project=mine tracking.notes=n tracking.every_steps=10 checkpoint.every_steps=50",
)
"""Command lines, as a shell reads them; together they use every file of ``conf`` and every member of every slot."""

REFUSED: tuple[str, ...] = (
    "sparsity=rgil",
    "sparsity.densty=0.1",
    "sparsity.density=2",
    "sparsity.density=many",
    "sparsity=dense sparsity.density=0.5",
    "sparsity.drop.quantile=0.5",
    "sparsity=set_itop sparsity.drop.name=threshold sparsity.drop.value=-1",
    "sparsity.update.every=100000",
    "sparsity.update.order=before_step sparsity.grow.name=gradent",
    "sparsity=static sparsity.update.every=10",
    "sparsity=granet sparsity.density_schedule.end=0.9 sparsity.update.stop=0.8",
    "model=mlp model.dropout=0.5",
    "model=resnet20 sparsity=nm_rigl sparsity.pattern.indivisible=error",
    "model=lenet_5 data.size=4",
    "model=resnet50 model.fan_in=true",
    "model.init=fan_in",
    "model=resnet18 model.bias_scale=0",
    "model.init=looks_linear model.init_density=0.1 model.weights=nowhere",
    "data.augment.padding_mode=zeros",
    "schedule.batch_size=0 schedule.lr.peak=nan hardware.threads=0",
    "schedule.lr.name=multistep",
    "schedule.lr.milestones=[0.6,0.3] schedule.lr.name=multistep",
    "schedule.optimizer.name=adamw schedule.optimizer.momentum=0.9",
    "hardware.precision=tf32",
    "hardware.capture=always hardware.compile_mode=reduce-overhead schedule.accumulate=2",
    "hydra.launcher.wait=true",
    "seed=0,1",
    "-m sparsity=static,rigl sparsity.density=0.1,3",
    "-m seed=range(0,2) sparsity.density=null",
    "model.weights=nowhere",
    "data=image_folder data.root=nowhere",
    "data=tabular data.path=nowhere.csv data.target=y",
    "data=tabular data.path=wine model=vgg_c",
    "correction=agent hardware.precision=fp16",
    "correction=agent schedule.batch_size=2000 schedule.update_every=5",
    "procedure=sup_tickets schedule.epochs=10",
    "procedure=imp procedure.rewind=epoch procedure.rewind_epoch=2 procedure.density=0.1 schedule.lr.warmup_epochs=3",
    "procedure=imp sparsity=granet procedure.keep=1",
    "procedure=sup_tickets procedure.superpose=mean",
    "procedure=sup_tickets procedure.lr=constant procedure.lr_at_ticket=0.01",
    "procedure=sup_tickets schedule.select=best_val",
    "sparsity=static procedure=sup_tickets procedure.re_explore=0.5",
    "sparsity=snip sparsity.distribution.batches=1000",
    "sparsity=rigl sparsity.reparametrize.name=edge_popup sparsity.reparametrize.density=0.05",
    "sparsity=edge_popup procedure=sup_tickets",
    "sparsity=edge_popup sparsity.reparametrize.density=0.6",
    "procedure=anneal",
    "sparsity=edge_popup procedure=anneal schedule.max_steps=100",
    "sparsity.density=0.00001",
    "--cfg job --package sparsity.updat",
)
"""Command lines that are refused before anything is trained."""

SALIENT = ("magnitude", "gradient", "snip", "grasp", "synflow", "prune_global", "prune_and_grow_global")
"""Distributions and inits of which floats say how many weights each layer keeps."""


# -- data that is pretended to be there --------------------------------------------------------------------------------

SHAPES = {
    "digits": (1437, 360, (1, 8, 8), 10),
    "mnist": (60_000, 10_000, (1, 28, 28), 10),
    "fashion_mnist": (60_000, 10_000, (1, 28, 28), 10),
    "cifar10": (50_000, 10_000, (3, 32, 32), 10),
    "cifar100": (50_000, 10_000, (3, 32, 32), 100),
    "tiny_imagenet": (100_000, 10_000, (3, 64, 64), 200),
    "imagenet": (1_281_167, 50_000, (3, 224, 224), 1000),
    "image_folder": (3000, 500, (3, 64, 64), 7),
}
"""Training and test images, shape and classes of the originals; ``image_folder`` stands for no real one."""
RESIDENT = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")


def pretended(name: str, read: Any, *, digest: str, size: int | None = None, **others: Any) -> Dataset:
    """Return a set as ``dst.data.cache.load`` would, whose images are no pictures; a table is the real one."""
    return _pretended(name, digest, size) if name in SHAPES else load(name, read, digest=digest, size=size, **others)


@cache
def _pretended(name: str, digest: str, size: int | None) -> Dataset:
    train, test, (channels, height, width), classes = SHAPES[name]
    height, width = (height, width) if size is None else (size, size)
    make = _images if name in RESIDENT else _files
    parts = [make(torch.arange(count) % classes, (channels, height, width)) for count in (train, test)]
    return Dataset(name, *parts, classes, digest)


def _images(labels: torch.Tensor, shape: tuple[int, int, int]) -> Split:
    pixels = torch.arange(1009, dtype=torch.int64).mul_(101).remainder_(256).to(torch.uint8)
    wanted = len(labels) * shape[0] * shape[1] * shape[2]
    return Split(pixels.repeat(-(-wanted // len(pixels)))[:wanted].view(-1, *shape), labels)


def _files(labels: torch.Tensor, shape: tuple[int, int, int]) -> Files:
    names, stamps = np.zeros(len(labels), dtype="S1"), np.zeros((len(labels), 2), dtype=np.int64)
    return Files(Path("nowhere"), names, stamps, labels, Resize(shape[1]))


# -- facts -------------------------------------------------------------------------------------------------------------


def facts(commands: Sequence[str] = COMMANDS, refused: Sequence[str] = REFUSED, processes: int = 2) -> Facts:
    """Return the facts of these commands by the code as it is, worked out in processes of their own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, get_context("spawn"), initializer=_pretend, initargs=(folder,)) as pool,
    ):
        taken = dict(zip(commands, pool.map(_fact, commands), strict=True))
        refusals = dict(zip(refused, pool.map(_refusal, refused), strict=True))
    base = taken[""]["config"]
    return {
        "base": base,
        "ids": {command: fact["id"] for command, fact in taken.items()},
        "configs": {command: _differing(fact["config"], base) for command, fact in taken.items()},
        "counts": {command: fact["counts"] for command, fact in taken.items()},
        "refusals": refusals,
    }


def _differing(leaves: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return what is not as in the default run; 1 is not 1.0."""
    return {key: value for key, value in leaves.items() if key not in base or repr(value) != repr(base[key])}


def _pretend(folder: str) -> None:
    """Make this process see the same on every machine: no GPU, no data but what is pretended, an empty folder."""
    os.chdir(folder)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    warnings.simplefilter("ignore")
    building.load, forecasting.build = pretended, _built
    torch.cuda.is_available = lambda: False


_BUILT: list[Any] = []


def _built(config: Config) -> Any:
    """Build, and remember what was built."""
    _BUILT[:] = [building.build(config)]
    return _BUILT[0]


def _fact(command: str) -> dict[str, Any]:
    """Return id, config and counts of a command, or in their place why it is refused."""
    try:
        config, launcher = _config(command)
        return {"id": id_of(identity(config)), "config": flatten(config) | launcher, "counts": _counts(config)}
    except ValueError as error:
        return {"id": "refused", "config": {"refused": str(error)}, "counts": {}}


def _config(command: str) -> tuple[Config, dict[str, Any]]:
    """Return the complete config of a command, and the settings of its launcher, if any."""
    composed = compose_command(CONF, shlex.split(command), multirun=False)
    config = composed.cells[0].config
    if problems := check(config):
        raise ConfigError(problems)
    launcher = vars(composed.launcher) if composed.launcher else {}
    return identified(complete(config), {}), {f"hydra.launcher.{key}": value for key, value in launcher.items()}


def _counts(config: Config) -> dict[str, Any]:
    """Return weights and FLOPs of a run at its first step."""
    for key, digest in CHECKPOINTS.items():
        if get(config, key) is not None:  # the bits of what is there differ between machines, and so does their digest
            config = with_value(with_value(config, key, _source()), digest, None)
    config = with_value(config, "hardware", Config().hardware)  # which changes no count
    feasible.check(config)
    elsewhere = with_value(config, "hardware.device", "cuda")  # which is not here
    (forecast,) = forecasting.forecasts([Cell(elsewhere, None)])
    found = {name: getattr(forecast, name) for name in ("steps", "parameters", "maskable", "active", "dense_flops")}
    if {config.sparsity.distribution.name, config.sparsity.init.name} & set(SALIENT):
        return found
    training = _BUILT[0].training
    layers = training.sparsifier.topology.active_by_layer
    test = training.ledger.flops.test(layers)
    return {**found, "train_flops": forecast.train_flops, "test_flops": test, "layers": layers}


@cache
def _source() -> str:
    """Return the folder of a run to start from, which is made now."""
    root = f"source-{os.getpid()}"
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        command = ("sparsity=static", "schedule.epochs=1", "tracking=none", f"output.root={root}")
        assert command_line(command, conf=CONF) == 0, shown.getvalue()
    (folder,) = Path(root, "default").iterdir()
    return str(folder)


def _refusal(command: str) -> dict[str, Any]:
    """Return the exit code of a command line and the error that it says; before it stands what it was doing."""
    told = io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = command_line(shlex.split(command), conf=CONF)
    text = told.getvalue().replace(os.getcwd(), ".")
    return {"code": code, "message": text[text.find("configuration error") :].strip()}


# -- the file ----------------------------------------------------------------------------------------------------------


def different(then: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield where two nested values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            below = f"{where} > {key}" if where else f"[{key}]"
            if key not in then or key not in now:
                side, value = ("new", now[key]) if key not in then else ("gone", then[key])
                yield f"{below}: {side}: {value}"
            else:
                yield from different(then[key], now[key], below)
    elif repr(then) != repr(now):  # 1 is not 1.0
        yield f"{where}: {then!r} became {now!r}"


def text(found: Facts) -> str:
    """Return facts as JSON, a line for each command."""
    parts = []
    for part, values in found.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """Compare or write; return 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.facts", description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the file of the facts by today's")
    parser.add_argument("--to", type=Path, metavar="FILE", help="write today's facts there, and compare nothing")
    options = parser.parse_args()
    now = text(facts())
    if options.to:
        options.to.write_text(now)
        return 0
    then = json.loads(FILE.read_text()) if FILE.exists() else {}
    lines = list(different(then, json.loads(now)))
    print("\n".join([*lines, f"{len(lines)} facts differ"]))
    if options.write:
        FILE.write_text(now)
    return int(bool(lines) and not options.write)


if __name__ == "__main__":
    sys.exit(main())
