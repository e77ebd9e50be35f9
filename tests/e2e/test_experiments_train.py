"""Every experiment trains: a few epochs, on stand-in pictures where its data is large.

Of those with the same large network one trains it, which is the slow part; the others try all else on a small one.
"""

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
EPOCHS = {"single": 3, "imp": 3, "anneal": 5, "sup_tickets": 5}
"""The procedure of an experiment -> its epochs here; one where the schedule is multiplied."""

OWN_NETWORK = {
    "vgg_c": "itop/rigl",
    "vgg_d": "shuffled_blocks/vgg_cifar100",
    "vgg16": "random_pruning/er_dst",
    "resnet18": "random_pruning/static",
    "resnet34": "shuffled_blocks/resnet34_imagenet",
    "resnet50": "granet/imagenet",
    "resnet50_cifar": "sup_tickets/cifar_granet",
}
"""A large network -> the experiment that trains it here."""
SMALL_NETWORK = {"unstructured": "resnet20", "shuffled_block": "wrn_22_2"}
"""The pattern of another experiment -> the network on which it is tried; blocks of 16 need its widths."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of 3 classes with 10 training and 2 test pictures each."""
    return write_folder(tmp_path_factory.mktemp("pictures"), {"train": 10, "val": 2}, classes=3, height=32, width=32)


def shortened(name: str, pictures: Path) -> list[str]:
    """Return the overrides by which an experiment takes a few epochs of 4 steps, or of its own data if that is here."""
    ((_, config),) = compose_cells(REPOSITORY / "conf", [f"+experiment={name}"], multirun=False)
    procedure, data = config.procedure, config.data
    epochs = 1 if config.schedule.multiplier > 1 else EPOCHS[procedure.name]
    words = [f"+experiment={name}", f"schedule.epochs={epochs}", "hardware.threads=1", "tracking=none"]
    if OWN_NETWORK.get(config.model.name, name) != name:
        words += [f"model={SMALL_NETWORK[config.sparsity.pattern.name]}"]
        words += ["model.stem_pool=null"] if config.model.stem_pool else []
    words += ["procedure.level_epochs=1"] if procedure.level_epochs else []
    words += ["procedure.cycle_epochs=1"] if procedure.name == "sup_tickets" else []
    words += ["schedule.update_every=2"] if config.sparsity.update.every else []
    words += ["schedule.lr.warmup_epochs=0.5"] if config.schedule.lr.warmup_epochs else []
    words += ["procedure.pretrain_epochs=3"] if procedure.pretrain_epochs else []
    words += ["procedure.cycle_rate=0.4"] if procedure.cycle_rate else []
    if data.name not in COLOURED:
        return [*words, "schedule.batch_size=128", *(["data=digits"] if data.name == "mnist" else [])]
    words += ["schedule.batch_size=8", "data=image_folder", f"data.root={pictures}", "data.size=32"]
    return [*words, f"data.augment.crop_padding={data.augment.crop_padding}"] if data.name != "imagenet" else words


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains(name, pictures, tmp_path):
    result = run(*shortened(name, pictures), cwd=tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert 0 <= summary["test/accuracy"] <= 1
