"""Parts that do not go together are refused, with the keys to blame and how to mend it."""

from pathlib import Path

import pytest

from dst.config.checks import check
from tests.composed import compose_cells

CONF = Path(__file__).parents[2] / "conf"


def config_of(overrides):
    ((_, config),) = compose_cells(CONF, overrides.split(), multirun=False)
    return config


def problems(overrides):
    return check(config_of(overrides))


OWN = "sparsity.density=null sparsity.distribution.name=none"

REFUSED = {
    "sparsity=dense sparsity.init.name=magnitude": [
        "sparsity.init.name=magnitude would be ignored: with sparsity.distribution.name=dense all weights are active "
        "at first. Choose uniform, er or erk, and a density, or sparsity.init.name=random"
    ],
    "sparsity=dense sparsity.init.name=saliency sparsity.init.criterion=snip": ["sparsity.init.name=saliency would be"],
    "sparsity=gmp sparsity.init.name=bernoulli": ["sparsity.init.name=bernoulli would be ignored"],
    "sparsity=granet sparsity.density_schedule.initial=1 sparsity.init.name=magnitude": [
        "with sparsity.density_schedule.initial=1 all weights are active at first. Choose an initial density below 1"
    ],
    "sparsity=dense sparsity.pattern.name=constant_fan_in": ["sparsity.pattern.name=constant_fan_in would be ignored"],
    "sparsity=srigl sparsity.init.name=bernoulli": [
        "sparsity.init.name=bernoulli keeps to no pattern, so its masks would break sparsity.pattern.name="
        "constant_fan_in: choose random, magnitude or saliency, or the unstructured pattern"
    ],
    f"sparsity=nm_rigl {OWN} sparsity.init.name=prune_uniform sparsity.init.rate=0.5": ["keeps to no pattern"],
    f"sparsity=srigl {OWN} sparsity.init.name=prune_and_grow_global sparsity.init.rate=0.5": ["keeps to no pattern"],
    "sparsity=static sparsity.distribution.name=uniform_plus sparsity.scope.dense_last=true": [
        "sparsity.scope.dense_last=true leaves the last layer out, but sparsity.distribution.name=uniform_plus gives"
    ],
    "sparsity=static sparsity.distribution.name=uniform_plus sparsity.scope.dense_first=true": [
        "sparsity.scope.dense_first=true leaves the first layer out"
    ],
    "sparsity=static sparsity.distribution.classifier=0.5 sparsity.scope.dense_last=true": [
        "or choose a distribution without (leave out its classifier)"
    ],
    "sparsity=gmp sparsity.update.start=0.25": [
        "sparsity.density_schedule.start=0.0: updates begin later, at sparsity.update.start=0.25, and the first would"
    ],
}


@pytest.mark.parametrize(("overrides", "told"), REFUSED.items())
def test_refused(overrides, told):
    found = problems(overrides)
    assert len(found) == len(told), found
    for problem, text in zip(found, told, strict=True):
        assert text in problem


ALLOWED = [
    "sparsity=granet sparsity.density_schedule.initial=1",
    "sparsity=granet sparsity.init.name=magnitude",
    "sparsity=srigl sparsity.init.name=magnitude",
    "sparsity=srigl sparsity.init.name=saliency sparsity.init.criterion=snip",
    f"sparsity=srigl {OWN} sparsity.init.name=prune_structured sparsity.init.rate=0.5",
    "sparsity=gmp sparsity.update.start=0.25 sparsity.density_schedule.start=0.25",
    "sparsity=static sparsity.distribution.name=uniform_plus",
    "sparsity=static sparsity.distribution.classifier=0.5 sparsity.scope.dense_first=true",
    "sparsity=static sparsity.scope.dense_first=true sparsity.scope.dense_last=true",
]


@pytest.mark.parametrize("overrides", ALLOWED)
def test_allowed(overrides):
    assert problems(overrides) == []


@pytest.mark.parametrize("option", ["snip batches", "grasp batches", "grasp temperature", "synflow rounds"])
def test_ratios_and_positions_are_of_the_same_ranking(option):
    """One override changes the criterion of both; the init may still be given another by itself."""
    method, name = option.split()
    both = config_of(f"sparsity={method} sparsity.distribution.{name}=7").sparsity
    assert getattr(both.init, name) == getattr(both.distribution, name) == 7
    apart = config_of(f"sparsity={method} sparsity.init.{name}=7").sparsity
    assert getattr(apart.init, name) == 7 != getattr(apart.distribution, name)
