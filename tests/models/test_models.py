"""The model zoo against the published counts, other data, and the smallest data that each takes."""

import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dst import registry
from dst.models import ModelError

OPTIONS = {"mlp": {"hidden": [256, 256]}}
NAMES = sorted(registry.members("model"))
SMALLEST = {"mlp": 1, "lenet_300_100": 1, "lenet_5": 16, "vgg_c": 4, "resnet18": 1, "resnet50": 1}
CONF = Path(__file__).parents[2] / "conf" / "model"

any_model = pytest.mark.parametrize("name", NAMES)


def build(name, shape, classes, device="meta"):
    with torch.device(device):
        return registry.find("model", name).load()(shape, classes, **OPTIONS.get(name, {}))


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def output_shape(model, shape, batch=2):
    return tuple(model(torch.empty(batch, *shape, device="meta")).shape)


# Parameters, maskable weights and maskable layers of specs/itop_agent.md, section 8.
PUBLISHED = [
    ("lenet_5", (1, 28, 28), 10, 431_080, 430_500, 4),
    ("lenet_300_100", (1, 28, 28), 10, 266_610, 266_200, 3),
    ("vgg_c", (3, 32, 32), 10, 11_323_466, 11_307_712, 16),
    ("resnet18", (3, 32, 32), 10, 11_173_952, 11_164_352, 21),
    ("resnet18", (3, 32, 32), 100, 11_220_032, 11_210_432, 21),
    ("resnet50", (3, 224, 224), 1000, 25_557_032, 25_502_912, 54),
]


@pytest.mark.parametrize(("name", "shape", "classes", "parameters", "maskable", "number"), PUBLISHED)
def test_published_counts(name, shape, classes, parameters, maskable, number):
    model = build(name, shape, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    weights = [layer.weight.numel() for layer in layers(model).values()]
    assert (sum(weights), len(weights)) == (maskable, number)
    assert output_shape(model, shape) == (2, classes)


def test_mlp_with_the_widths_of_the_itop_cifar_mlp():
    model = registry.find("model", "mlp").load()((3, 32, 32), 10, hidden=[1024, 512])
    assert sum(p.numel() for p in model.parameters()) == 3_676_682
    assert [(name, tuple(layer.weight.shape)) for name, layer in layers(model).items()] == [
        ("fc1", (1024, 3072)),
        ("fc2", (512, 1024)),
        ("fc3", (10, 512)),
    ]
    assert [type(module) for module in model] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_mlp_refuses_a_width_below_one():
    with pytest.raises(ModelError, match=r"model\.hidden=\[256, 0\] must hold positive widths"):
        registry.find("model", "mlp").load()((1, 8, 8), 10, hidden=[256, 0])


def test_vgg_c_has_the_names_of_the_published_code():
    model = build("vgg_c", (3, 32, 32), 10)
    features, classifier = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), (0, 3, 6)
    assert list(layers(model)) == [f"features.{i}" for i in features] + [f"classifier.{i}" for i in classifier]
    kernels = {i: model.features[i].kernel_size[0] for i in features}
    assert [i for i, kernel in kernels.items() if kernel == 1] == [20, 30, 40]
    assert {kernel for i, kernel in kernels.items() if i not in (20, 30, 40)} == {3}
    assert all(model.features[i].padding == (1, 1) and model.features[i].bias is not None for i in features)
    assert model.classifier[0].in_features == 2048


def test_vgg_c_triples_and_pools():
    model = build("vgg_c", (3, 32, 32), 10)
    letters = "".join(
        {nn.Conv2d: "c", nn.BatchNorm2d: "b", nn.ReLU: "r", nn.MaxPool2d: "M"}[type(m)] for m in model.features
    )
    assert letters == ("cbr" * 2 + "M") * 2 + ("cbr" * 3 + "M") * 3
    assert [type(m) for m in model.classifier] == [nn.Linear, nn.ReLU, nn.BatchNorm1d] * 2 + [nn.Linear]


def test_resnet18_shortcuts_and_classifier():
    model = build("resnet18", (3, 32, 32), 10)
    assert [name for name in layers(model) if "shortcut" in name] == [f"layer{i}.0.shortcut.0" for i in (2, 3, 4)]
    assert {name: layer.bias for name, layer in layers(model).items() if layer.bias is not None} == {}
    names = list(layers(model))
    assert (names[0], names[-1]) == ("conv1", "linear")


def test_resnet18_halves_its_maps_in_all_stages_but_the_first():
    model, sides = build("resnet18", (3, 32, 32), 10), []
    maps = model.relu(model.bn1(model.conv1(torch.empty(2, 3, 32, 32, device="meta"))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        maps = stage(maps)
        sides.append(tuple(maps.shape[1:]))
    assert sides == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_resnet18_block_adds_its_shortcut():
    block = build("resnet18", (3, 8, 8), 10, device="cpu").layer1[0].eval()
    nn.init.zeros_(block.conv2.weight)  # what is left is the shortcut
    maps = torch.linspace(-1, 1, 64 * 16).reshape(1, 64, 4, 4)
    assert torch.equal(block(maps), maps.clamp(min=0))


@any_model
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 40, 24), (5, 17, 16)])
def test_adapts_to_channels_size_and_classes(name, shape):
    assert output_shape(build(name, shape, 100), shape) == (2, 100)


@pytest.mark.parametrize("name", [name for name in NAMES if SMALLEST[name] <= 8])
def test_trains_on_digits(name):
    torch.manual_seed(0)
    model = build(name, (1, 8, 8), 10, device="cpu")
    logits = model(torch.randn(3, 1, 8, 8))
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if SMALLEST[name] > 1])
def test_smaller_images_really_leave_no_map(name):
    """Below the smallest size torch itself fails, before the classifier whose width depends on the size."""
    modules = list(build(name, (1, 64, 64), 10).children())
    features = nn.Sequential(*itertools.takewhile(lambda module: not isinstance(module, nn.Flatten), modules))
    for side in range(1, SMALLEST[name]):
        with pytest.raises(RuntimeError):
            features(torch.empty(2, 1, side, side, device="meta"))
    assert features(torch.empty(2, 1, SMALLEST[name], SMALLEST[name], device="meta")).numel() > 0


@any_model
@settings(max_examples=15, deadline=None)
@given(height=st.integers(0, 40), width=st.integers(0, 40))
def test_builds_exactly_if_both_sides_are_large_enough(name, height, width):
    if min(height, width) >= SMALLEST[name]:
        assert output_shape(build(name, (2, height, width), 3), (2, height, width)) == (2, 3)
        return
    with pytest.raises(ModelError):
        build(name, (2, height, width), 3)


@any_model
def test_error_of_too_small_images_says_how_to_mend_it(name):
    side = SMALLEST[name]
    with pytest.raises(ModelError) as error:
        build(name, (1, side - 1, side), 10)
    assert str(error.value) == (
        f"model {name} needs images of at least {side}x{side}, these are {side - 1}x{side} (1 channel): "
        f"set data.size={side} or more, or choose another model"
    )


@any_model
def test_starts_from_the_global_random_numbers(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten()[:50] for p in build(name, (1, 16, 16), 10, device="cpu").parameters()])

    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_resnet50_is_torchvisions_own():
    from torchvision.models import resnet50

    torch.manual_seed(0)
    ours = build("resnet50", (3, 64, 64), 1000, device="cpu").state_dict()
    torch.manual_seed(0)
    theirs = resnet50().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_resnet50_initialises_the_stem_of_other_channels_likewise():
    torch.manual_seed(0)
    stem = build("resnet50", (1, 64, 64), 10, device="cpu").conv1
    assert tuple(stem.weight.shape) == (64, 1, 7, 7)
    fan_out = 64 * 7 * 7
    assert stem.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_torchvision_is_imported_by_resnet50_only():
    code = """
import sys
from dst import registry
import dst.models
for name in registry.members("model"):
    build = registry.find("model", name).load()
    if name != "resnet50":
        build((3, 32, 32), 10, **({"hidden": [8]} if name == "mlp" else {}))
print("torchvision" in sys.modules)
registry.find("model", "resnet50").load()((3, 32, 32), 10)
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_every_model_has_its_yaml_and_every_yaml_its_model():
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == NAMES


@any_model
def test_yaml_and_signature_say_what_the_registry_says(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    content = yaml.safe_load(text)
    assert content.pop("name") == name
    member = registry.find("model", name)
    assert set(content) == set(member.options)
    parameters = inspect.signature(member.load()).parameters
    assert list(parameters)[:2] == ["shape", "classes"]
    keyword_only = {n: p.default for n, p in itertools.islice(parameters.items(), 2, None)}
    assert all(parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in keyword_only)
    expected = {n: inspect.Parameter.empty if d is registry.REQUIRED else d for n, d in member.options.items()}
    assert keyword_only == expected
