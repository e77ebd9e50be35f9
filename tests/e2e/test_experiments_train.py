"""Every experiment trains: a few epochs of its own network and method, on stand-in pictures where its data is large."""

import json
from pathlib import Path

import pytest

from tests.composed import compose_cells
from tests.data.pictures import write_folder
from tests.processes import REPOSITORY, run, run_folder

NAMES = sorted(
    str(path.relative_to(REPOSITORY / "experiments").with_suffix(""))
    for path in REPOSITORY.glob("experiments/*/*.yaml")
)
COLOURED = ("cifar10", "cifar100", "tiny_imagenet", "imagenet")
LENGTHS = {
    "single": ("schedule.epochs=3",),
    "imp": ("schedule.epochs=3", "procedure.level_epochs=1"),
    "anneal": ("schedule.epochs=5",),
    "sup_tickets": ("schedule.epochs=5", "procedure.cycle_epochs=1"),
}
"""The procedure of an experiment -> what makes it short."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of 3 classes with 10 training and 2 test pictures each."""
    return write_folder(tmp_path_factory.mktemp("pictures"), {"train": 10, "val": 2}, classes=3, height=32, width=32)


def shortened(name: str, pictures: Path) -> list[str]:
    """Return the overrides by which an experiment takes a few epochs of 4 steps, or of its own data if that is here."""
    ((_, config),) = compose_cells(REPOSITORY / "conf", [f"+experiment={name}"], multirun=False)
    procedure, data = config.procedure, config.data
    words = [f"+experiment={name}", *LENGTHS[procedure.name], "hardware.threads=1", "tracking=none"]
    words += ["schedule.update_every=2"] if config.sparsity.update.every else []
    words += ["schedule.lr.warmup_epochs=0.5"] if config.schedule.lr.warmup_epochs else []
    words += ["procedure.pretrain_epochs=3"] if procedure.pretrain_epochs else []
    words += ["procedure.cycle_rate=0.4"] if procedure.cycle_rate else []
    if data.name not in COLOURED:
        return [*words, "schedule.batch_size=32", *(["data=digits"] if data.name == "mnist" else [])]
    words += ["schedule.batch_size=8", "data=image_folder", f"data.root={pictures}", "data.size=32"]
    return [*words, f"data.augment.crop_padding={data.augment.crop_padding}"] if data.name != "imagenet" else words


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains(name, pictures, tmp_path):
    result = run(*shortened(name, pictures), cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert 0 <= summary["test/accuracy"] <= 1
