"""Experiments of shuffled blocks: as many steps and updates, and as many weights, as the published commands have.

Data is pretended to be there, in the number and shape of the original.
"""

import json
import math
from itertools import pairwise

import pytest
import torch

from dst.config.checks import check
from dst.config.schema import ConfigError, complete
from dst.run import build, feasible
from dst.sparsity.initial_masks import first_counts
from tests.composed import compose_cells
from tests.golden import facts
from tests.processes import REPOSITORY, run, run_folder

FOLDER = "shuffled_blocks"
NAMES = sorted(
    path.stem for path in (REPOSITORY / "experiments" / FOLDER).glob("*.yaml") if not path.stem.endswith("mini")
)
DYNAMIC = [name for name in NAMES if not name.endswith("_ssb")]
IMAGENET = [name for name in DYNAMIC if name.endswith("_imagenet") and "tiny" not in name]


@pytest.fixture(autouse=True)
def _pretended(monkeypatch):
    """Pretend that data is there; nothing of it stays in memory."""

    def loaded(name, given, size=None, **others):
        return facts.pretended(name, None, digest="", size=size)

    monkeypatch.setattr(build, "_load_once", loaded)
    yield
    facts._pretended.cache_clear()


def composed(name, *overrides):
    words = [f"+experiment={FOLDER}/{name}", *overrides]
    ((_, config),) = compose_cells(REPOSITORY / "conf", words, multirun=False)
    assert check(config) == []
    return complete(config)


def steps_per_epoch(config):
    return len(build.make_loaders(config, build.load_dataset(config), "cpu").train)


def layers_and_counts(config, classes=None):
    """Return the layers of a run's network, with so many classes, and how many weights its first masks have of each."""
    dataset = build.load_dataset(config)
    with torch.device("meta"):
        model = build.part(config, "model")(dataset.shape, classes or dataset.classes)
    layers = build.make_scope(config).layers(model)
    return layers, first_counts(layers, build.first_parts(config), build.initial_density(config))


@pytest.mark.parametrize("name", NAMES)
def test_model_data_and_method_fit(name):
    feasible.check(composed(name), elsewhere=True)


MISFITS = {
    "sparsity.pattern.block_size=7": "name=shuffled_block would be ignored, since no sparse layer fits: fc1, fc2 "
    "(unstructured: 256 outputs are no multiple of 7); fc3 (unstructured: 10 outputs are no multiple of 7); "
    "use another sparsity.pattern.block_size, or sparsity.pattern.name=unstructured",
    "sparsity.pattern.indivisible=error": "layer fc3: shuffled_block: 10 outputs are no multiple of 16: choose another",
    "sparsity.pattern.column_unit=16": "layer fc1: shuffled_block: 2,462 weights are 10 units of 16 x 16, too few for "
    "1 (min_units) in each of 16 groups: choose smaller blocks or units, or a larger density; layer fc2: ",
    "sparsity.pattern.min_units=20": "groups: choose smaller blocks or units, a smaller min_units, or a larger density",
    # Rows are alike in fours, or not at all: nothing is packed above the density of unstructured masks.
    **dict.fromkeys(
        [
            f"sparsity.pattern.block_size={rows} sparsity.distribution.name=uniform sparsity.density=0.4 "
            "sparsity.compute=packed"
            for rows in (0, 4, 12)
        ],
        "sparsity.compute=packed would be ignored: no layer could be packed at any time",
    ),
}


@pytest.mark.parametrize("options", MISFITS)
def test_what_does_not_fit_is_refused_with_the_layers(options):
    hidden = "model.hidden=[252,252]" if "block_size=12" in options else "model.hidden=[256,256]"
    words = ["sparsity=dsb", "data=digits", "model=mlp", hidden, *options.split()]
    ((_, config),) = compose_cells(REPOSITORY / "conf", words, multirun=False)
    assert check(config) == []
    with pytest.raises(ConfigError) as caught:
        feasible.check(config, elsewhere=True)
    assert MISFITS[options] in str(caught.value)


@pytest.mark.parametrize("name", DYNAMIC)
def test_blocks_of_no_rows_are_rigl(name):
    """What the published ``--block_size 0`` is meant to be; with the same updates."""
    config = composed(name, "sparsity.pattern.block_size=0")
    feasible.check(config, elsewhere=True)
    steps = build.total_steps(config, steps_per_epoch(config))
    update, blocked = (build.make_update(other, steps) for other in (config, composed(name)))
    assert update.plan == blocked.plan
    assert (update.drop.func, update.grow.func) == (blocked.drop.func, blocked.grow.func)
    layers, counts = layers_and_counts(config)
    assert sum(counts) == round(config.sparsity.density * sum(layer.size for layer in layers))


# -- steps, updates and rates ------------------------------------------------------------------------------------------

# The published loops: steps an epoch, epochs, and the iterations that may update, counted from 0.
PUBLISHED_STEPS = {
    "wrn_cifar10": (391, 160, 75_000 // 2, 100),
    "vgg_cifar100": (391, 160, 75_000 // 2, 100),
    "resnet50_tiny_imagenet": (352, 105, 400_000, 800),
    **dict.fromkeys(IMAGENET, (5005, 105, 400_000, 800)),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_updates_come_at_the_published_steps(name):
    config = composed(name)
    in_epoch, epochs, gate, every = PUBLISHED_STEPS[name]
    assert steps_per_epoch(config) == in_epoch
    steps = build.total_steps(config, in_epoch)
    assert steps == in_epoch * epochs
    plan = build.make_update(config, steps).plan
    due = [it + 1 for it in range(steps) if (it + 1) % every == 0 and it < gate]
    assert [step for step in range(1, steps + 1) if plan.due(step)] == due
    assert plan.updates() == len(due) == {100: 375, 800: 46 if "tiny" in name else 500}[every]


@pytest.mark.parametrize("name", DYNAMIC)
def test_drop_fractions_begin_and_end_as_published(name):
    """At the first update and the last one, and never further away than half a cosine is from a quarter of one."""
    config = composed(name)
    in_epoch, epochs, gate, every = PUBLISHED_STEPS[name]
    curve = build.make_update(config, in_epoch * epochs).drop_fraction
    horizon = 75_000 if every == 100 else 400_000

    def published(step):
        return 0.15 * (1 + math.cos(math.pi * (step - 1) / horizon))

    updates = range(every, min(gate, in_epoch * epochs) + 1, every)
    away = [abs(curve(step) - published(step)) for step in updates]
    assert max(away[0], away[-1]) < 1e-4
    assert max(away) < (0.04 if every == 100 else 2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_no_epoch_trains_at_a_rate_of_zero(name):
    config = composed(name)
    in_epoch = steps_per_epoch(config)
    steps = build.total_steps(config, in_epoch)
    curve = build.learning_rate(config, in_epoch, steps)
    rates = [curve(step) for step in range(0, steps, 11)]
    assert min(rates) > 0
    assert max(rates) == 0.1
    middles = [curve(epoch * in_epoch + in_epoch // 2) for epoch in range(steps // in_epoch)]
    if "cifar" in name:
        assert middles == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)
        falls = [step for step, (one, other) in enumerate(pairwise(map(curve, range(steps))), 1) if one != other]
        assert falls == [80 * 391, 120 * 391]
    else:  # the published epochs are 0.02, 0, 0.02, 0.04, 0.06, 0.08, and then these
        assert middles[6:] == pytest.approx([0.1] * 30 + [0.01] * 40 + [0.001] * 20 + [0.0001] * 9)
        assert middles[:5] == pytest.approx([0.01, 0.03, 0.05, 0.07, 0.09], abs=1e-4)


# -- weights -----------------------------------------------------------------------------------------------------------

# Measured with the published code: its realised sparsity, in networks of so many classes.
REALISED = {
    "wrn_cifar10": (100, 0.89838),
    "vgg_cifar100": (100, 0.89988),
    "resnet50_imagenet": (1000, 0.49986),
}


@pytest.mark.parametrize("name", REALISED)
def test_published_blocks_have_the_published_density(name):
    classes, sparsity = REALISED[name]
    config = composed(name, "sparsity.pattern.published=true", "sparsity.pattern.min_units=0")
    feasible.check(config, elsewhere=True)
    layers, counts = layers_and_counts(config, classes)
    assert 1 - sum(counts) / sum(layer.size for layer in layers) == pytest.approx(sparsity, abs=6e-6)


def test_published_blocks_are_as_many_as_published():
    for name, classes, blocks in (("wrn_cifar10", 100, 390), ("resnet50_imagenet", 1000, 31_142)):
        config = composed(name, "sparsity.pattern.published=true", "sparsity.pattern.min_units=0")
        layers, counts = layers_and_counts(config, classes)
        pattern = build.first_parts(config).pattern()
        found = [
            n // 256
            for layer, n in zip(layers, counts, strict=True)
            if n < layer.size and pattern.misfit(layer.weight.shape) is None
        ]
        assert sum(found) == blocks


@pytest.mark.parametrize("name", NAMES)
def test_blocks_have_the_density_but_for_half_a_unit_a_layer(name):
    config = composed(name)
    layers, counts = layers_and_counts(config)
    _, free = layers_and_counts(
        composed(name.removesuffix("_ssb"), "sparsity.pattern.block_size=0")
    )  # as the distribution has it
    pattern = build.first_parts(config).pattern()
    outside = {layer.name for layer in layers if pattern.misfit(layer.weight.shape) is not None}
    assert outside == {layers[-1].name}
    for layer, count, wanted in zip(layers, counts, free, strict=True):
        assert count == wanted if layer.name in outside else (count % 16, abs(count - wanted) <= 8) == (0, True)


# -- the mini ----------------------------------------------------------------------------------------------------------


def test_the_mini_moves_its_blocks(tmp_path):
    """As far as its second update, with what its network needs on a CPU besides packed layers."""
    small = ["schedule.max_steps=56", "hardware.threads=1", "hardware.fused=all", "sparsity.compute=packed"]
    result = run(f"+experiment={FOLDER}/mini", *small, "tracking=none", cwd=tmp_path)
    assert result.code == 0, result.output
    records = (run_folder(tmp_path) / "layers.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, records) if line.get("churn") is not None]
    assert {line["step"] for line in lines} == {20, 40}
    assert all(0 < line["churn"] <= 0.3 for line in lines if line["active"] < line["size"])
    assert all(line["active"] % 16 == 0 for line in lines if line["layer"] != "fc")
