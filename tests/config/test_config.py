import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from dst import registry
from dst.config import method
from dst.config.checks import check
from dst.config.identity import identity, run_id
from dst.config.schema import (
    SLOTS,
    Config,
    ConfigError,
    bound_options,
    complete,
    flatten,
    get,
    leaves,
    with_value,
)
from dst.data import published
from dst.options import REQUIRED, read
from dst.sparsity.marks import marks_of
from tests.composed import compose_cells
from tests.messages import malformed

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides):
    ((_, config),) = compose_cells(CONF, overrides, multirun=False)
    return config


def problems(*overrides):
    try:
        return check(composed(*overrides))
    except ConfigError as error:
        return error.problems


# -- the registry ------------------------------------------------------------------------------------------------------


MEMBERS = [(kind, name) for kind in sorted(set(SLOTS.values())) for name in registry.members(kind) if name != "none"]


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_a_member_takes_exactly_the_options_of_its_signature(kind, name):
    """What is read from the source is what Python makes of it, and the function is there."""
    member = registry.find(kind, name)
    parameters = inspect.signature(member.load()).parameters.values()
    keyword_only = {
        p.name: REQUIRED if p.default is p.empty else p.default for p in parameters if p.kind is p.KEYWORD_ONLY
    }
    assert {name: option.default for name, option in member.options.items()} == keyword_only


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_what_is_read_of_a_declaration_is_what_it_means(kind, name):
    member = registry.find(kind, name)
    hints = get_type_hints(member.load(), include_extras=True)
    assert member.options == {name: read(name, hints[name], option.default) for name, option in member.options.items()}
    assert member.exactly_one == getattr(member.load(), "exactly_one", ())


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_the_marks_of_a_member_are_those_of_its_function(kind, name):
    member = registry.find(kind, name)
    assert member.marks == marks_of(member.load())


def test_members_are_the_public_functions():
    assert {kind: sorted(registry.members(kind)) for kind in SLOTS.values()} == {
        "model": [
            *["alexnet_b", "alexnet_s", "lenet_300_100", "lenet_5", "mlp", "mlp_cifar10"],
            *["resnet101", "resnet152", "resnet18", "resnet18_imagenet"],
            *["resnet20", "resnet32", "resnet34", "resnet34_imagenet", "resnet50", "resnet50_cifar"],
            *["vgg16", "vgg19", "vgg_c", "vgg_d", "vgg_like", "vit_b_16", "vit_tiny"],
            *["wrn_16_10", "wrn_16_8", "wrn_22_2", "wrn_22_8", "wrn_28_10", "wrn_28_2"],
        ],
        "data": [
            "cifar10",
            "cifar100",
            "digits",
            "fashion_mnist",
            "image_folder",
            "imagenet",
            "mnist",
            "tabular",
            "tiny_imagenet",
        ],
        "distribution": [
            *["balanced", "dense", "er", "erk", "from_run", "gradient", "grasp", "magnitude", "none", "pyramidal"],
            *["snip", "synflow", "uniform", "uniform_plus"],
        ],
        "init": [
            *["bernoulli", "file", "magnitude"],
            *["prune_and_grow_global", "prune_and_grow_structured", "prune_and_grow_uniform"],
            *["prune_global", "prune_structured", "prune_uniform", "random", "saliency"],
        ],
        "pattern": ["constant_fan_in", "n_m", "shuffled_block", "unstructured"],
        "drop": ["magnitude", "none", "random", "set", "taylor", "threshold"],
        "grow": ["gradient", "momentum", "momentum_neuron", "none", "random", "random_unexplored"],
        "redistribute": ["magnitude", "momentum", "none", "nonzeros"],
        "drop_fraction": ["constant", "cosine", "linear", "none"],
        "density_schedule": ["cubic", "none"],
        "optimizer": ["adamw", "sgd"],
        "lr": ["constant", "cosine", "multistep"],
        "reparametrize": ["edge_popup", "none", "soft_threshold"],
        "correction": ["agent", "none"],
        "procedure": ["anneal", "imp", "single", "sup_tickets"],
    }


def test_every_option_of_a_member_is_a_key_of_its_slot():
    for slot, kind in SLOTS.items():
        node = get(Config(), slot)
        for member in registry.members(kind).values():
            assert all(hasattr(node, name) for name in member.options), (slot, member)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(registry.UnknownNameError, match="unknown model 'resnet-18': did you mean 'resnet18'"):
        registry.find("model", "resnet-18")


# -- every YAML --------------------------------------------------------------------------------------------------------

OPTIONS = [
    (folder.name, path.stem)
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "experiment"
    for path in sorted(folder.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_is_sound_and_explains_itself(group, option):
    needed = ["sparsity=edge_popup"] if (group, option) == ("procedure", "anneal") else []
    assert problems(f"{group}={option}", *needed) == []
    first = (CONF / group / f"{option}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


# -- identity ----------------------------------------------------------------------------------------------------------


def test_run_ids_never_change():
    """Recorded runs are found by their id: a change here means that users' finished runs are trained again."""
    assert run_id(Config()) == "ef1424cb5c9d"
    assert run_id(composed()) == "3ca3e1323a2e"
    assert run_id(composed("sparsity=rigl", "data=mnist", "model=lenet_300_100", "schedule=mnist")) == "d83ec537a8ba"


def test_a_schedule_whose_rate_falls_inside_an_epoch_says_so():
    """The published codes round such a milestone down to whole epochs."""
    for path in sorted((CONF / "schedule").glob("*.yaml")):
        text = path.read_text()
        values = yaml.safe_load(text)
        falls = [share * values.get("epochs", 0) for share in values.get("lr", {}).get("milestones", [])]
        inside = [fall for fall in falls if 0.05 < fall % 1 < 0.95]
        in_steps = "of 87 891 steps as fractions" in text
        assert ("inside an epoch" in text) == (bool(inside) and not in_steps), (path.name, falls)
    assert "187.5, which lies inside an epoch" in (CONF / "schedule" / "itop_cifar.yaml").read_text()
    assert "169.5, which" in (CONF / "experiment" / "sup_tickets" / "cifar_rigl.yaml").read_text()


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_the_published_content_of_a_known_set_is_no_part_of_the_identity(name):
    plain, given = composed(f"data={name}"), composed(f"data={name}", f"data.digest={published.digest(name)}")
    assert complete(plain).data.digest == given.data.digest
    assert run_id(plain) == run_id(complete(plain)) == run_id(given) == run_id(complete(given))
    assert identity(composed(f"data={name}", f"data.digest={'0' * 64}"))["data.digest"] == "0" * 64


def test_where_a_starting_point_lies_is_no_part_of_the_identity_but_what_it_is():
    ids = {run_id(complete(composed("model.weights=a", f"model.weights_digest={n * 64}"))) for n in "01"}
    assert len(ids) == 2
    assert run_id(complete(composed("model.weights=./b", f"model.weights_digest={'0' * 64}"))) in ids


def test_identity_holds_what_differs_from_the_defaults_and_nothing_else():
    assert identity(Config()) == {}
    assert identity(replace(Config(), seed=3)) == {"seed": 3}
    assert identity(composed("sparsity=dense", "model=lenet_300_100", "schedule.epochs=10")) == {
        "model.name": "lenet_300_100",
        "schedule.epochs": 10,
        "schedule.optimizer.weight_decay": 0.0005,
    }


def test_the_defaults_of_the_schema_are_those_of_the_default_run():
    """Outside the choice of model, data and method, and options of members: these have their defaults elsewhere."""
    schema, run = flatten(Config()), flatten(composed())
    of_members = {f"{slot}.{name}" for slot, kind in SLOTS.items() for name in registry.slot_options(kind)}
    own = [key for key in schema if not key.startswith("sparsity.") and key not in of_members]
    assert {key: schema[key] for key in own} == {key: run[key] for key in own}
    assert len(own) > 60


@pytest.mark.parametrize(
    "override",
    [
        "output.root=/elsewhere",
        "output.group=g",
        "tracking.progress=none",
        "checkpoint.every_steps=7",
        "data.root=/d",
        "data.download=false",
        "hardware.capture=never",
        "output.resume=never",
    ],
)
def test_where_and_how_is_no_part_of_the_identity(override):
    assert run_id(composed(override)) == run_id(composed())


def alone(key):
    """Say whether a key names the only member of its registry, so that its name cannot change."""
    slot, _, last = key.rpartition(".")
    return last == "name" and len(registry.members(SLOTS[slot])) == 1


@pytest.mark.parametrize("key", [key for key, _, is_identity in leaves(Config()) if is_identity and not alone(key)])
def test_every_identity_field_changes_the_id(key):
    config = composed()
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = getattr(node, parent)
    if last == "name":
        kind = SLOTS[key.rpartition(".")[0]]
        value = next(name for name in registry.members(kind) if name != node.name)
    else:
        value = {"sparsity.update.on_last_step": True}.get(key, 0.123)
    before = run_id(config)
    setattr(node, last, value)
    assert run_id(config) != before


def test_a_key_that_was_replaced_still_identifies_its_runs():
    """Whatever the model; runs that had it are found by the key that took its place."""
    found = identity(composed("model=resnet50", "model.init=fan_in"))
    assert found.items() >= {"model.name": "resnet50", "model.fan_in": True}.items()
    assert "model.init" not in found
    assert identity(composed("model=resnet50", "model.init=looks_linear"))["model.init"] == "looks_linear"


def test_a_default_said_aloud_is_the_same_run():
    assert run_id(composed("schedule.optimizer.momentum=0.9", "schedule.lr.floor=0")) == run_id(composed())
    assert run_id(complete(composed())) == run_id(composed())


def test_an_update_interval_that_a_static_method_ignores_makes_no_other_run():
    assert run_id(composed("sparsity=static", "schedule.update_every=7")) == run_id(composed("sparsity=static"))


ADAM = "schedule.optimizer.name=adamw"
AGE = "sparsity.update.adam_age"
PUBLISHED = "sparsity=dsb sparsity.pattern.published=true sparsity.pattern.min_units=0"


@pytest.mark.parametrize(
    ("options", "age", "identity_has"),
    [
        ("", None, False),
        ("sparsity=static " + ADAM, None, False),
        ("sparsity=gmp " + ADAM, None, False),
        ("sparsity=dense " + ADAM, None, False),
        (ADAM, "weight", True),
        (f"{ADAM} {AGE}=weight", "weight", True),
        (f"{ADAM} {AGE}=tensor", "tensor", False),
        (f"sparsity=granet {ADAM}", "weight", True),
    ],
)
def test_the_age_that_adam_goes_by_identifies_only_runs_that_it_changes(options, age, identity_has):
    """Runs by the age of tensors are those of before there was a choice, and keep their ids."""
    config = complete(composed(*options.split()))
    assert config.sparsity.update.adam_age == age
    assert (AGE in identity(config)) == identity_has
    assert flatten(complete(config)) == flatten(config)
    without = with_value(config, AGE, None)
    assert (run_id(config) != run_id(without)) == identity_has


def test_ids_of_adam_before_its_ages_are_those_by_the_tensor():
    """The id is that of the same command at the commit before."""
    before = f"{ADAM} schedule.optimizer.beta2=0.99 schedule.lr.name=constant schedule.lr.peak=0.001"
    options = [*before.split(), "schedule.optimizer.decay=not_norms"]
    assert run_id(complete(composed(*options, f"{AGE}=tensor"))) == "0809940bfde0"
    assert run_id(complete(composed(*options))) != "0809940bfde0"


def test_complete_fills_in_what_will_be_used_and_leaves_the_original_alone():
    config = composed()
    done = complete(config)
    assert config.schedule.optimizer.momentum is None
    assert (done.schedule.optimizer.momentum, done.schedule.optimizer.nesterov, done.schedule.lr.floor) == (
        0.9,
        True,
        0.0,
    )
    assert done.schedule.optimizer.beta1 is None
    assert bound_options(done, "sparsity.drop_fraction") == {"initial": 0.5, "floor": 0.005, "horizon": "end"}
    assert flatten(complete(done)) == flatten(done)


# -- what is wrong -----------------------------------------------------------------------------------------------------

WRONG = {
    "sparsity=rigl_itp": "unknown sparsity: did you mean 'rigl_itop'? allowed: dense, dsb, dst, edge_popup, gmp",
    "modle=mlp": "unknown key 'modle': did you mean 'model'?",
    "sparsity.densty=0.1": "unknown key 'sparsity.densty': did you mean 'sparsity.density'?",
    "+sparsity.new=1": "unknown key 'sparsity.new'",
    "~seed": "cannot be deleted",
    "sparsity.density": "cannot read 'sparsity.density'",
    "sparsity.density=abc": "sparsity.density=abc: Value 'abc' of type 'str' could not be converted to Float",
    "seed=1.5": "seed=1.5: Value '1.5' of type 'float' could not be converted to Integer",
    "seed=0,1": "seed=0,1 gives several values: to sweep over them, add --multirun",
    "sparsity.density=0": "sparsity.density=0.0: must be in (0, 1)",
    "hardware.workers=100000": "hardware.workers=100000: must be in [0, 256]",
    "sparsity.density=1.5": "sparsity.density=1.5: must be in (0, 1)",
    "sparsity.density=-1": "sparsity.density=-1.0: must be in (0, 1)",
    "sparsity.density=nan": "sparsity.density=nan: must be a finite number in (0, 1)",
    "sparsity.density=inf": "sparsity.density=inf: must be a finite number in (0, 1)",
    "sparsity.density=null": "sparsity.density is missing: sparsity 'rigl_itop' needs it",
    "sparsity.drop.name=magnitud": "unknown drop 'magnitud': did you mean 'magnitude'?",
    "sparsity.grow.name=none": "would be ignored without sparsity.grow.name",
    "sparsity.update.every=null": "sparsity.update.every is missing: sparsity 'rigl_itop' updates",
    "sparsity.drop.pool=all": "sparsity.drop.pool=all: allowed: global, layer",
    "sparsity.density_schedule.name=cubic": "sparsity.density_schedule.end is missing",
    "sparsity.density_schedule.end=0.5": "sparsity.density_schedule.end=0.5 would be ignored",
    "sparsity.density_schedule.pool=layer": "would be ignored without a density schedule",
    "sparsity=granet sparsity.density_schedule.initial=0.05": "initial=0.05: must be in (sparsity.density=0.1, 1]",
    "sparsity=gmp sparsity.density_schedule.initial=0.5": "would be ignored: the distribution is dense at first",
    "sparsity=gmp sparsity.density_schedule.start=0.6": "must be in [0, sparsity.density_schedule.end=0.5)",
    "sparsity=gmp sparsity.update.stop=0.4": "density_schedule.end=0.5: the ramp would be cut short at the last update "
    "(sparsity.update.stop=0.4); set end <= stop",
    "sparsity=gmp sparsity.density=null": "sparsity.density is missing: sparsity 'gmp' needs it",
    "sparsity=gmp sparsity.redistribute.name=momentum": "would be ignored: nothing is dropped and grown",
    "sparsity=rigl schedule.update_every=1": "=replaces_step: with sparsity.update.every=1 every step would",
    "sparsity=rigl sparsity.update.on_last_step=true": "=true: with sparsity.update.stop=0.75 it would be ignored",
    "sparsity=snfs hardware.precision=fp16": "their moving average would mix different loss scales",
    "sparsity.repair.flow=adds": "sparsity.repair.flow=adds: did you mean 'add'? allowed: add, move, none",
    "sparsity=srigl sparsity.repair.flow=add": "sparsity.repair.flow=add mends single weights, and "
    "sparsity.pattern.name=constant_fan_in does not go by them",
    "sparsity=nm_rigl sparsity.repair.orthogonal=true": "sparsity.repair.orthogonal=true mends single weights, and "
    "sparsity.pattern.name=n_m does not go by them",
    "sparsity=dense sparsity.repair.flow=add": "sparsity.repair.flow=add would be ignored: with "
    "sparsity.distribution.name=dense all weights are active at first",
    "sparsity=gmp sparsity.repair.flow=move": "sparsity.repair.flow=move would be ignored: with",
    "sparsity=static sparsity.density=null sparsity.distribution.name=none sparsity.init.name=prune_structured "
    "sparsity.init.rate=0.5 sparsity.repair.flow=add": "sparsity.repair.flow=add would bring back the units that "
    "sparsity.init.name=prune_structured removes on purpose",
    "hardware.threads=10000": "hardware.threads=10000: must be in [1, 1024]",
    "hardware.precision=tf32": "hardware.precision=tf32: with hardware.device=cpu it would be ignored: only GPUs",
    "hardware.capture=on": "hardware.capture=on: allowed: always, auto, never",
    "hardware.capture=always": "hardware.capture=always: with hardware.device=cpu there are no CUDA graphs",
    "hardware=ddp hardware.capture=always": "with hardware.processes=2 a step waits for other processes",
    "hardware=gpu hardware.capture=always data.storage=stream": "with data.storage=stream batches come from the host",
    "hardware=gpu hardware.capture=always data.size=32 data.augment.resized_crop_scale=[0.1,1]": "images are streamed",
    "hardware=gpu hardware.capture=always sparsity.compute=auto": "with sparsity.compute=auto packed layers get new",
    "hardware=gpu_bf16 hardware.capture=always hardware.compile_mode=reduce-overhead": "hardware.capture=always: with "
    "hardware.compile_mode=reduce-overhead the step cannot be a graph",
    "hardware=gpu hardware.compile_mode=reduce-overhead": "needs hardware.compile, which is false: set that, or "
    "hardware.compile_mode=default",
    "hardware.compile=true hardware.compile_mode=reduce-overhead": "with hardware.device=cpu it would be ignored",
    "hardware=ddp hardware.compile=true hardware.compile_mode=reduce-overhead": "with hardware.processes=2 nobody has",
    "hardware=gpu_bf16 hardware.compile_mode=reduce-overhead schedule.accumulate=2": "schedule.accumulate=2 adds up",
    "hardware=gpu_bf16 hardware.compile_mode=reduce-overhead correction=agent": "correction.name=agent needs gradients",
    "schedule.accumulate=65": "schedule.accumulate=65: must be in [1, schedule.batch_size=64]",
    "hydra.run.dir=/tmp/x": "hydra.run.dir=/tmp/x would be ignored",
    "sparsity=glob(*)": "",
    "output.root=": "output.root='': must be the name of a folder",
    "output.group=a/.b": "output.group=a/.b: must be a folder below output.root",
    "data.mean=[nan] data.std=[1]": "data.mean=[nan]: must be a list, each finite",
    "data.mean=[0] data.std=[1e-30]": "data.std=[1e-30]: must be a list, each >= 1e-06",
    "sparsity.update.order=before": "sparsity.update.order=before: allowed: after_step, replaces_step",
    "sparsity.update.start=1": ": must be in [0, sparsity.update.stop=1.0)",
    "sparsity.drop_fraction.name=constant": "sparsity.drop_fraction.floor=0.005 would be ignored",
    "sparsity.drop_fraction.floor=0.6": "must be in [0, sparsity.drop_fraction.initial=0.5]",
    "sparsity.distribution.name=dense": "leaves nothing to drop and grow",
    "sparsity.scope.include=[]": "sparsity.scope.include=[]: must be a list of 1 or more",
    "schedule.lr.name=multistep": "schedule.lr.milestones is missing: lr 'multistep' needs it",
    "schedule.lr.gamma=0.1": "schedule.lr.gamma=0.1 would be ignored: lr 'cosine' takes floor",
    "schedule.lr.floor=1": "schedule.lr.floor=1.0: must be in [0, schedule.lr.peak=0.1]",
    "schedule.lr.warmup_epochs=50": "schedule.lr.warmup_epochs=50.0 must be less than the 50 epochs",
    "schedule.optimizer.momentum=0": "needs schedule.optimizer.momentum, which is 0.0: set",
    "schedule.optimizer.beta1=0.9": "schedule.optimizer.beta1=0.9 would be ignored: optimizer 'sgd' takes momentum",
    "schedule.clip_norm=0": "schedule.clip_norm=0.0: must be > 0",
    "schedule.clip_norm=inf": "schedule.clip_norm=inf: must be a finite number > 0",
    "schedule.clip_value=-1": "schedule.clip_value=-1.0: must be > 0",
    "schedule.epochs=0": "schedule.epochs=0: must be >= 1",
    "schedule.select=best": "schedule.select=best: did you mean 'best_val'? allowed: best_val, last",
    "model.hidden=[]": "model.hidden=[]: must be a list of 1 or more, each in [1, 1000000]",
    "model.hidden=null": "model.hidden is missing: model 'mlp' needs it",
    "model.name=lenet_300_100": "model.hidden=[256, 256] would be ignored",
    "model.init=kaiming": "model.init=kaiming: did you mean 'kaiming_normal'? allowed: default, fan_in, k",
    "model.init=fan_in model.weights=x": "model.init=fan_in: does not go with model.weights=x: leave out one of them",
    "model.bias_scale=0 model.weights=x": "model.bias_scale=0.0: does not go with model.weights=x",
    "model.bias_scale=-1": "model.bias_scale=-1.0: must be >= 0",
    "model.init_density=0.1 model.weights=x": "(model.init_density=null)",
    "model.init_density=0": "model.init_density=0.0: must be in (0, 1]",
    "model.fan_in=true": "there is no key 'model.fan_in' any more: model.init=fan_in is what model.fan_in=true was",
    "model={fan_in:true}": "Key 'fan_in' not in 'Model'; at key model.fan_in: model.init=fan_in is what model.fan_",
    "data.mean=[0.5]": "data.mean=[0.5]: needs data.std, which is null: set that, or data.mean=null",
    "data.digest=abc": "data.digest=abc: must be a SHA-256, 64 digits of 0-9 and a-f",
    f"model.weights_digest={'0' * 64}": ": needs model.weights, which is null: set that, or model.weights_digest=null",
    f"sparsity.init.digest={'0' * 64}": "would be ignored: init 'random' takes no options",
    "data.augment.padding_mode=zeros": "needs data.augment.crop_padding, which is 0: set that, or",
    "data.val_fraction=1": "data.val_fraction=1.0: must be in [0, 1)",
    "data.val_fraction=0 schedule.select=best_val": "schedule.select=best_val would be ignored: there is no validation",
    "data.val_fraction=0 schedule.eval_every_epochs=3": "eval_every_epochs=3 would be ignored: there is no validation",
    "data.val_fraction=0 data.split_seed=3": "data.split_seed=3: needs data.val_fraction, which is 0.0",
    "hardware.device=gpu": "hardware.device=gpu:",
    "sparsity=nm_rigl sparsity.density=0.5": "sparsity.density=0.5 would be ignored: sparsity.pattern.name=n_m says",
    "sparsity=nm_rigl sparsity.distribution.name=erk": "sparsity.distribution.name=erk would be ignored: sparsity.pa",
    "sparsity=nm_rigl sparsity.pattern.n=4": "sparsity.pattern.n=4: must be in [1, sparsity.pattern.m=4)",
    "sparsity=nm_rigl sparsity.pattern.n=null": "sparsity.pattern.n is missing: pattern 'n_m' needs it",
    "sparsity=nm_rigl sparsity.pattern.indivisible=pad": "sparsity.pattern.indivisible=pad: allowed: dense, error",
    "sparsity=static sparsity.init.name=prune_global sparsity.init.rate=0.5": "Use sparsity.density=null sparsity.di",
    "sparsity=static sparsity.init.name=prune_global": "sparsity.init.rate is missing: init 'prune_global' needs it",
    "sparsity=granet sparsity.init.name=file sparsity.init.path=x": "sparsity.density_schedule.name=cubic leads from",
    "sparsity=static sparsity.distribution.name=none": "nothing says how many weights each layer keeps",
    "sparsity=static sparsity.distribution.clip=true sparsity.distribution.name=uniform": "clip=true would be ignored",
    "sparsity.drop.name=threshold sparsity.drop_fraction.name=none": "exactly one of value and quantile is needed",
    "sparsity.drop.name=threshold sparsity.drop.value=0.1": "sparsity.drop_fraction.name=cosine would be ignored",
    "sparsity.drop.value=0.1": "sparsity.drop.value=0.1 would be ignored: drop 'magnitude' takes no options",
    "sparsity=snip sparsity.init.rounds=3": "init.rounds=3 would be ignored: init 'saliency' takes criterion, batches",
    "sparsity=snip sparsity.init.batches=0": "sparsity.init.batches=0: must be >= 1",
    "sparsity=snip sparsity.init.criterion=null": "sparsity.init.criterion is missing: init 'saliency' needs it",
    "sparsity=snip sparsity.init.criterion=snap": "sparsity.init.criterion=snap: did you mean 'snip'?",
    "sparsity=dsb sparsity.pattern.block_size=null": "sparsity.pattern.block_size is missing: pattern 'shuffled_block'",
    "sparsity=dsb sparsity.pattern.block_size=1": "sparsity.pattern.block_size=1: must be 0 or >= 2",
    "sparsity=dsb sparsity.pattern.column_unit=4": "sparsity.pattern.column_unit=4: must be 1 | 16",
    "sparsity=dsb sparsity.pattern.min_units=0": "sparsity.pattern.min_units=0: with sparsity.pattern.published=false",
    "sparsity=dsb sparsity.pattern.published=true": "with sparsity.pattern.min_units=1 the published code keeps no fl",
    f"{PUBLISHED} sparsity.pattern.column_unit=16": "column_unit=16: does not go with sparsity.pattern.published=tru",
    f"{PUBLISHED} sparsity.pattern.regroup_every_updates=0": "does not go with sparsity.pattern.published=true",
    "sparsity=dsb sparsity.pattern.block_size=0 sparsity.pattern.column_unit=16": "column_unit=16: needs sparsity.patt",
    "sparsity=dsb sparsity.pattern.block_size=0 sparsity.pattern.min_units=3": "min_units=3: needs sparsity.pattern.bl",
    "sparsity=ssb sparsity.pattern.regroup_every_updates=5": "regroup_every_updates=5 would be ignored: nothing is dro",
    "sparsity=static sparsity.pattern.name=constant_fan_in sparsity.pattern.ablation=0.3": "ablation=0.3 would be ign",
    "sparsity=dsb sparsity.redistribute.name=magnitude": "changes how many weights a layer has, which sparsity.pattern",
    "sparsity=srigl sparsity.redistribute.name=magnitude": "changes how many weights a layer has, which sparsity.pat",
    "sparsity=gmp sparsity.pattern.name=constant_fan_in": "sparsity.density_schedule.name=cubic changes how many weigh",
    "sparsity=gmp schedule.optimizer.name=adamw sparsity.update.adam_age=tensor": "adam_age=tensor would be ignored: "
    "nothing is dropped and grown. Use null",
    "sparsity=set_itop sparsity.update.adam_age=weight": "sparsity.update.adam_age=weight would be ignored: "
    "schedule.optimizer.name=sgd does not correct moments by age as Adam does; leave it out (null)",
    "schedule.optimizer.name=adamw sparsity.update.adam_age=layer": "adam_age=layer: allowed: tensor, weight",
    "sparsity=gmp sparsity.update.grown_weights=initial": "grown_weights=initial would be ignored: nothing is dropped",
    "sparsity.update.grown_weights=random": "sparsity.update.grown_weights=random: allowed: initial, zero",
    "sparsity.update.regrow=false sparsity.update.returning_weights=reset": "needs sparsity.update.regrow",
    "output.group=../x": "output.group=../x: must be a folder below output.root",
}


@pytest.mark.parametrize(("override", "told"), WRONG.items())
def test_wrong_overrides(override, told):
    found = problems(*override.split())
    assert any(told in problem for problem in found), found
    assert [problem for problem in found if malformed(problem)] == []


def test_all_problems_are_told_at_once():
    assert len(problems("sparsity.density=2", "schedule.epochs=0", "schedule.lr.peak=-1")) == 3
    assert len(problems("modle=x", "sparsity=y", "z=1")) == 3


def test_an_update_key_of_a_static_method_is_refused():
    assert problems("sparsity=static", "sparsity.update.stop=0.5") == [
        "sparsity.update.stop=0.5 would be ignored: sparsity 'static' never updates its topology. Use 1.0"
    ]
    (problem,) = problems("sparsity=dense", "sparsity.density=0.1")
    assert problem.startswith("sparsity.density=0.1 would be ignored: sparsity 'dense' trains all weights.")


def test_milestones():
    multistep = ("schedule.lr.name=multistep",)
    assert problems(*multistep, "schedule.lr.milestones=[0.5,0.75]") == []
    for wrong in ("[]", "[0.75,0.5]", "[0.5,1.5]", "[0.5,0.5]"):
        assert any("schedule.lr.milestones=" in p for p in problems(*multistep, f"schedule.lr.milestones={wrong}"))


def test_changing_the_optimizer_is_one_override():
    assert problems("schedule.optimizer.name=adamw") == []
    assert bound_options(composed("schedule.optimizer.name=adamw"), "schedule.optimizer") == {
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.0005,
    }


# -- composition -------------------------------------------------------------------------------------------------------


def test_a_sweep_is_the_product_of_its_values():
    cells = compose_cells(CONF, ["sparsity=static,rigl", "seed=range(0,3)", "sparsity.density=0.2"], multirun=True)
    assert [(c.sparsity.label, c.seed, c.sparsity.density) for _, c in cells] == [
        (label, seed, 0.2) for label in ("static", "rigl") for seed in (0, 1, 2)
    ]


def test_values_keep_their_types():
    config = composed("sparsity.density=0.25", "schedule.lr.peak=1", "model.hidden=[8,4]")
    assert (config.sparsity.density, config.schedule.lr.peak, config.model.hidden) == (0.25, 1.0, [8, 4])
    assert isinstance(config.schedule.lr.peak, float)
    assert math.isclose(config.sparsity.update.every, 50)


@pytest.mark.parametrize(
    ("column_unit", "block_size", "has_units"),
    [(16, 32, True), (16, 64, True), (16, 128, True), (1, 64, False), (16, 16, False), (16, 0, False), (32, 32, False)],
)
def test_on_a_gpu_packed_wants_units_that_groups_of_rows_share(column_unit, block_size, has_units, monkeypatch):
    """Whatever pattern says that it makes them."""
    options = {"column_unit": column_unit, "block_size": block_size}
    monkeypatch.setattr(method, "bound_options", lambda *_: options)
    told = list(method.check_compute(composed("hardware=gpu", "sparsity=rigl_itop", "sparsity.compute=packed")))
    assert (
        "sparsity.compute=packed: on hardware.device=cuda weights are multiplied by units of 16" in str(told)
    ) != has_units


def test_on_a_gpu_auto_takes_any_masks():
    config = composed("hardware=gpu", "sparsity=rigl_itop", "sparsity.compute=auto", "hardware.determinism=fast")
    assert list(method.check_compute(config)) == []
