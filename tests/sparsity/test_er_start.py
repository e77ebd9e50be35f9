"""Methods that start from a random mask of any layer ratio: static, or dynamic from density 0.01 down to 0.001."""

import pytest

from dst import registry
from dst.config.checks import check
from dst.config.compose import compose_each
from dst.config.schema import complete
from dst.records.catalog import find_runs
from dst.records.read import read_layers, read_summary
from dst.run import build, feasible
from tests.golden.facts import STATISTICS, pretended
from tests.processes import REPOSITORY, run

RATIOS = sorted(set(registry.members("distribution")) - {"none", "dense", "from_run"})
"""All that say how many weights each layer has, without another run."""
FALLING = ("sparsity.density_schedule.initial=0.01", "sparsity.density=0.001")
METHODS = {"static": ("sparsity.density=0.2",), "dst": ("sparsity.density=0.001",), "granet": FALLING, "gmp": FALLING}
DATA = {
    "cifar10": (),
    "cifar100": (),
    "tiny_imagenet": (f"data.digest={'2' * 64}", *STATISTICS.split()),
}


def command(method, ratio, data="cifar10", model="vgg16"):
    schedule = "er_cifar" if method == "static" else "er_dst_cifar"
    chosen = (f"data={data}", f"model={model}", f"sparsity={method}", f"schedule={schedule}", *DATA[data])
    return (*chosen, f"sparsity.distribution.name={ratio}", *METHODS[method])


COMMANDS = [
    *(command(method, ratio) for method in METHODS for ratio in RATIOS),
    *(command(method, "erk", data, model) for method in METHODS for data in DATA for model in ("vgg16", "resnet18")),
]


def test_every_ratio_goes_with_every_method_on_every_data_set(monkeypatch):
    """All of them are composed and checked, and fit their data and networks, whose pictures are pretended."""
    monkeypatch.setattr(build, "load", pretended)
    for cell in compose_each(REPOSITORY / "conf", COMMANDS):
        assert check(cell.config) == [], cell.overrides
        feasible.check(complete(cell.config))


@pytest.mark.slow
def test_from_a_random_mask_down_to_the_density_to_the_last_weight(tmp_path):
    """On digits, by each method; what is active at first and at last is exact, and in between it only falls."""
    falling = ("sparsity.density_schedule.initial=0.2", "sparsity.density_schedule.end=0.6875")
    common = ("model=lenet_300_100", "schedule.epochs=4", "schedule.update_every=10", "sparsity.density=0.02")
    silent = ("tracking=none", "hardware.threads=1")
    ratios = "sparsity.distribution.name=uniform,erk,synflow"
    done = run("-m", "sparsity=granet,gmp", ratios, *common, *falling, *silent, cwd=tmp_path)
    assert done.code == 0, done.output
    runs = find_runs(tmp_path / "outputs")
    assert len(runs) == 6
    for folder in runs:
        steps = {}
        for line in read_layers(folder):
            steps[line["step"]] = steps.get(line["step"], 0) + line["active"]
        active = [steps[step] for step in sorted(steps)]
        assert (active[0], active[-1]) == (10_040, 1_004)
        assert active == sorted(active, reverse=True)
        assert read_summary(folder)["sparsity/active"] == 1_004
