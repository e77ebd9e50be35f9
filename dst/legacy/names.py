"""How the published codes and their READMEs spell networks and data, and what they are here."""

import re
from typing import Final

from dst.legacy.plan import Call, Plan
from dst.legacy.tables import LegacyError
from dst.options import suggest

_NETWORKS: Final = {
    **{"lenet5": "lenet_5", "lenet300100": "lenet_300_100", "mlpcifar10": "mlp_cifar10"},
    **{"alexnets": "alexnet_s", "alexnetb": "alexnet_b", "vggc": "vgg_c", "vggd": "vgg_d", "vgglike": "vgg_like"},
    **{
        "vgg16": "vgg16",
        "vgg19": "vgg19",
        "resnet18": "resnet18",
        "resnet34": "resnet34",
        "resnet50": "resnet50_cifar",
    },
    **{"resnet20": "resnet20", "cifarresnet20": "resnet20", "resnet32": "resnet32", "cifarresnet32": "resnet32"},
    **{f"wrn{size.replace('_', '')}": f"wrn_{size}" for size in ("16_8", "16_10", "22_2", "22_8", "28_2", "28_10")},
}
_OF_IMAGENET: Final = {"resnet18": "resnet18_imagenet", "resnet34": "resnet34_imagenet", "resnet50": "resnet50"} | {
    name: name for name in ("resnet101", "resnet152")
}
_DATA: Final = {
    **{"mnist": "mnist", "cifar10": "cifar10", "cifar100": "cifar100"},
    **{"tinyimagenet": "tiny_imagenet", "imagenet": "imagenet"},
}


def network(call: Call, plan: Plan, spelled: str, *, imagenet: bool = False) -> str:
    """Choose the network that is spelled so, and return its name here."""
    known = _OF_IMAGENET if imagenet else _NETWORKS
    name = known.get(re.sub("[^a-z0-9]", "", spelled.lower()))
    if name is None:
        told = f"no network of that name; {suggest(spelled, call.program.spellings)}"
        raise LegacyError(f"{spelled or 'no --model'}: {told}")
    if spelled not in call.program.spellings:
        plan.missed += [f"{spelled}: the published code knows no network by this spelling"] if call.as_run else []
        plan.said += [] if call.as_run else [f"{spelled} is {name}; the published code refuses this spelling"]
    plan.set(model=name)
    return name


def data(plan: Plan, spelled: str, allowed: tuple[str, ...]) -> str:
    """Choose the data that are spelled so, out of those ``allowed``, and return their name here."""
    name = _DATA.get(re.sub("[^a-z0-9]", "", spelled.lower()))
    if name not in allowed:
        raise LegacyError(f"data {spelled or '(none)'}: allowed: {', '.join(allowed)}")
    plan.set(data=name)
    return name
