"""The model zoo against the published counts, other data, and the smallest data that each takes."""

import inspect
import itertools
import math
import re
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
from dst.metrics.flops import forward_flops
from dst.models import ModelError
from dst.models.initialise import initialise
from dst.sparsity.distribution import erk
from dst.sparsity.scope import Scope

OPTIONS = {"mlp": {"hidden": [256, 256]}}
NAMES = sorted(registry.members("model"))
SMALLEST = dict.fromkeys(NAMES, 1) | {
    **{"lenet_5": 16, "alexnet_s": 7, "alexnet_b": 7},
    **{"vgg_c": 4, "vgg_d": 32, "vgg_like": 32, "vgg16": 16, "vgg19": 16},
    **{"vit_tiny": 4, "vit_b_16": 16},
}
IMAGENET = [name for name in NAMES if registry.find("model", name).module == "dst.models.resnet_imagenet"]
WRN = [name for name in NAMES if name.startswith("wrn")]
VIT = ["vit_b_16", "vit_tiny"]
"""Those that take squares only, whose side is a multiple of the smallest."""
FREE = [name for name in NAMES if name not in VIT]
CONF = Path(__file__).parents[2] / "conf" / "model"

any_model = pytest.mark.parametrize("name", NAMES)
any_free_model = pytest.mark.parametrize("name", FREE)
# One of each kind, where all would take long: on the CPU they have 500 million weights to draw.
KINDS = [
    *["mlp", "lenet_300_100", "lenet_5", "mlp_cifar10", "alexnet_s", "vgg_c", "vgg16", "resnet18", "resnet20"],
    *["resnet50_cifar", "resnet18_imagenet", "resnet50", "wrn_22_2", "wrn_28_10", "vit_tiny"],
]
one_of_each_kind = pytest.mark.parametrize("name", KINDS)


def build(name, shape, classes, device="meta", **options):
    with torch.device(device):
        return registry.find("model", name).load()(shape, classes, **OPTIONS.get(name, {}), **options)


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def output_shape(model, shape, batch=2):
    return tuple(model(torch.empty(batch, *shape, device="meta")).shape)


# Shapes and counts (parameters, maskable weights, maskable layers) of specs/itop_agent.md, sections 8 and 9.
MNIST, CIFAR10, CIFAR100 = ((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 32, 32), 100)
IMAGES = ((3, 224, 224), 1000)
PUBLISHED = [
    ("lenet_5", MNIST, (431_080, 430_500, 4)),
    ("lenet_300_100", MNIST, (266_610, 266_200, 3)),
    ("mlp_cifar10", CIFAR10, (3_676_682, 3_675_136, 3)),
    ("alexnet_s", CIFAR10, (5_077_066, 5_066_784, 8)),
    ("alexnet_b", CIFAR10, (8_501_322, 8_484_896, 8)),
    ("vgg_c", CIFAR10, (11_323_466, 11_307_712, 16)),
    ("vgg_d", CIFAR10, (15_255_626, 15_239_872, 16)),
    ("vgg_like", CIFAR10, (14_991_946, 14_977_728, 15)),
    ("wrn_16_8", CIFAR10, (10_961_370, 10_954_160, 17)),
    ("wrn_16_10", CIFAR10, (17_116_634, 17_107_632, 17)),
    ("wrn_22_2", CIFAR10, (1_079_642, 1_076_912, 23)),
    ("wrn_22_8", CIFAR10, (17_158_106, 17_147_312, 23)),
    ("wrn_28_2", CIFAR10, (1_467_610, 1_463_984, 29)),
    ("resnet18", CIFAR10, (11_173_952, 11_164_352, 21)),
    ("resnet18", CIFAR100, (11_220_032, 11_210_432, 21)),
    ("resnet34", CIFAR10, (21_282_112, 21_265_088, 37)),
    ("resnet34", CIFAR100, (21_328_192, 21_311_168, 37)),
    ("resnet50", IMAGES, (25_557_032, 25_502_912, 54)),
    # specs/granet_suptickets.md, section 7, and specs/random_pruning_er.md, section 9
    ("resnet50_cifar", CIFAR10, (23_520_832, 23_467_712, 54)),
    ("resnet50_cifar", CIFAR100, (23_705_152, 23_652_032, 54)),
    # ... which give maskable weights only; parameters here: those, plus two for each norm's channel, plus the biases.
    ("vgg16", CIFAR10, (14_715_584 + 2 * 4_224 + 10, 14_715_584, 14)),
    ("vgg19", CIFAR10, (20_024_000 + 2 * 5_504 + 10, 20_024_000, 17)),
    ("vgg19", CIFAR100, (20_070_080 + 2 * 5_504 + 100, 20_070_080, 17)),
    ("resnet20", CIFAR10, (270_896 + 2 * 7 * (16 + 32 + 64) + 10, 270_896, 22)),
    ("resnet32", CIFAR10, (464_432 + 2 * 11 * (16 + 32 + 64) + 10, 464_432, 34)),
    # In no spec of ours; 36.5 M in the paper's table.
    ("wrn_28_10", CIFAR10, (36_479_194, 36_461_232, 29)),
    # ITOP's ImageNet networks, of which the spec gives the parameters; norms and biases taken off by hand.
    ("resnet18_imagenet", IMAGES, (11_689_512, 11_689_512 - 2 * 4_800 - 1000, 21)),
    ("resnet34_imagenet", IMAGES, (21_797_672, 21_797_672 - 2 * 8_512 - 1000, 37)),
    ("resnet101", IMAGES, (44_549_160, 44_549_160 - 2 * 52_672 - 1000, 105)),
    ("resnet152", IMAGES, (60_192_808, 60_192_808 - 2 * 75_712 - 1000, 156)),
    # Transformers: maskable are 21 233 664 weights of attention's fused projections as well.
    ("vit_b_16", IMAGES, (86_567_656, 86_292_480, 50)),
    # A block has 12 * 192^2 weights and 13 * 192 biases and norms; then stem, token, positions, norm, classifier.
    ("vit_tiny", CIFAR10, (6 * (12 * 192**2 + 13 * 192) + 192 * (48 + 1 + 1 + 65 + 2 + 10) + 10, 2_665_344, 26)),
]


@pytest.mark.parametrize(("name", "data", "counts"), PUBLISHED)
def test_published_counts(name, data, counts):
    shape, classes = data
    model = build(name, shape, classes)
    weights = [layer.size for layer in Scope().layers(model)]
    assert (sum(p.numel() for p in model.parameters()), sum(weights), len(weights)) == counts
    assert output_shape(model, shape) == (2, classes)


def test_every_model_but_the_free_one_has_its_counts():
    assert {name for name, _, _ in PUBLISHED} == set(NAMES) - {"mlp"}


# specs/shuffled_blocks.md, sections 2.2 and 2.3: blocks of 16x16, sparsity after rounding up to blocks, dense weights.
BLOCKED = [
    ("wrn_22_2", 100, 0.1, 390, 0.89838, {"conv1", "block1.0.shortcut", "block2.0.shortcut"}),
    ("vgg_d", 100, 0.1, None, 0.89988, None),
    ("resnet50_cifar", 1000, 0.5, 31_142, 0.49986, 3.85e6),
]


@pytest.mark.parametrize(("name", "classes", "density", "blocks", "sparsity", "dense"), BLOCKED)
def test_erk_in_blocks_is_the_published_one(name, classes, density, blocks, sparsity, dense):
    found = Scope().layers(build(name, (3, 32, 32), classes))
    densities = erk([layer.weight.shape for layer in found], density)
    counted = active = 0
    for layer, d in zip(found, densities, strict=True):
        outputs, inputs, *kernel = layer.weight.shape
        in_blocks = bool(kernel) and d < 1 and outputs % 16 == 0 and inputs >= 16
        counted += math.ceil(d * layer.size / 256) if in_blocks else 0
        active += 256 * math.ceil(d * layer.size / 256) if in_blocks else d * layer.size
    full = [layer for layer, d in zip(found, densities, strict=True) if d == 1]
    assert blocks in (counted, None)
    assert 1 - active / sum(layer.size for layer in found) == pytest.approx(sparsity, abs=6e-6)
    if isinstance(dense, set):
        assert {layer.name for layer in full} == dense
    elif dense:
        assert sum(layer.size for layer in full) == pytest.approx(dense, abs=5e3)


def test_erk_of_the_widest_convolutions_of_wrn_22_2():
    found = Scope().layers(build("wrn_22_2", (3, 32, 32), 100))
    densities = erk([layer.weight.shape for layer in found], 0.1)
    widest = [d for layer, d in zip(found, densities, strict=True) if layer.weight.shape == (128, 128, 3, 3)]
    assert widest == pytest.approx([0.061] * 5, abs=5e-4)


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
    with pytest.raises(ValueError, match=r"hidden=\[256, 0\]: must be a list of 1 or more, each in \[1, 1000000\]"):
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


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, shape) for name in FREE for shape in [(3, 64, 64), (1, 40, 33), (5, 33, 32)]),
        *((name, shape) for name in VIT for shape in [(3, 64, 64), (1, 48, 48), (5, 16, 16)]),
    ],
)
def test_adapts_to_channels_size_and_classes(name, shape):
    assert output_shape(build(name, shape, 100), shape) == (2, 100)


@any_model
def test_every_parameter_takes_part(name):
    side = max(8, SMALLEST[name])
    model = build(name, (1, side, side), 10)
    model(torch.empty(3, 1, side, side, device="meta")).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@one_of_each_kind
def test_trains_on_digits(name):
    side = max(8, SMALLEST[name])
    torch.manual_seed(0)
    model = build(name, (1, side, side), 10, device="cpu")
    logits = model(torch.randn(3, 1, side, side))
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(layer.weight.grad.any() for layer in layers(model).values())


@pytest.mark.parametrize("name", [name for name in FREE if SMALLEST[name] > 1])
def test_smaller_images_really_leave_no_map(name):
    """Below the smallest size torch itself fails, before the classifier whose width depends on the size."""
    modules = list(build(name, (1, 64, 64), 10).children())
    features = nn.Sequential(*itertools.takewhile(lambda module: not isinstance(module, nn.Flatten), modules))
    for side in range(1, SMALLEST[name]):
        with pytest.raises(RuntimeError):
            features(torch.empty(2, 1, side, side, device="meta"))
    assert features(torch.empty(2, 1, SMALLEST[name], SMALLEST[name], device="meta")).numel() > 0


@pytest.mark.parametrize("name", [name for name in FREE if SMALLEST[name] > 1 or name in KINDS])
@settings(max_examples=10, deadline=None)
@given(height=st.integers(0, 40), width=st.integers(0, 40))
def test_builds_exactly_if_both_sides_are_large_enough(name, height, width):
    if min(height, width) >= SMALLEST[name]:
        assert output_shape(build(name, (2, height, width), 3), (2, height, width)) == (2, 3)
        return
    with pytest.raises(ModelError):
        build(name, (2, height, width), 3)


@any_free_model
def test_error_of_too_small_images_says_how_to_mend_it(name):
    side = SMALLEST[name]
    with pytest.raises(ModelError) as error:
        build(name, (1, side - 1, side), 10)
    assert str(error.value) == (
        f"model {name} needs images of at least {side}x{side}, these are {side - 1}x{side} (1 channel): "
        f"set size={side} or more, or choose another model"
    )


@one_of_each_kind
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


@pytest.mark.parametrize("init", ["default", "fan_in"])
def test_imagenet_networks_start_by_fan_out_or_fan_in(init):
    """A 1x1 convolution to 256 channels has fan-out 256 and fan-in 64; a 3x3 one of 256 has 2304 of both."""
    torch.manual_seed(0)
    model = build("resnet50", (3, 64, 64), 10, device="cpu")
    initialise(model, registry.find("model_init", init).load())
    wide, narrow = model.layer1[0].conv3.weight, model.layer3[1].conv2.weight
    assert tuple(wide.shape) == (256, 64, 1, 1)
    assert wide.std().item() == pytest.approx((2 / (64 if init == "fan_in" else 256)) ** 0.5, rel=0.03)
    assert narrow.std().item() == pytest.approx((2 / 2304) ** 0.5, rel=0.03)


def test_fan_in_acts_on_the_stem_of_other_channels_too():
    torch.manual_seed(0)
    model = build("resnet18_imagenet", (1, 64, 64), 10, device="cpu")
    initialise(model, registry.find("model_init", "fan_in").load())
    assert model.conv1.weight.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.05)


def test_the_names_of_the_two_forms_of_resnets():
    """Torchvision's have a 7x7 stem, those for small images a 3x3 one."""
    kernels = {name: build(name, (3, 32, 32), 10).conv1.kernel_size[0] for name in NAMES if name.startswith("resnet")}
    depths = {name: int(name.removeprefix("resnet").split("_")[0]) for name in kernels}
    for name, kernel in kernels.items():
        usual = 3 if depths[name] < 50 else 7
        assert kernel == {"": usual, "cifar": 3, "imagenet": 7}[name.partition("_")[2]]


@pytest.mark.parametrize("name", ["resnet34", "resnet50_cifar"])
def test_wide_cifar_resnets_halve_their_maps_in_all_stages_but_the_first(name):
    model, sides = build(name, (3, 32, 32), 10), []
    maps = model.conv1(torch.empty(2, 3, 32, 32, device="meta"))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        maps = stage(maps)
        sides.append(tuple(maps.shape[2:]))
    assert sides == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert model.linear.bias is None


POOLED = ["resnet18", "resnet34", "resnet50_cifar"]


@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_stem_halves_all_maps_after_it_and_changes_no_parameter(name):
    plain, pooled = (build(name, (3, 64, 64), 200, stem_pool=pool) for pool in (False, True))
    assert [*pooled._modules] == ["conv1", "bn1", "relu", "stem_pool", *list(plain._modules)[3:]]
    assert repr(pooled.stem_pool) == repr(nn.MaxPool2d(3, stride=2, padding=1))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (plain, pooled)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    assert str(build(name, (3, 64, 64), 200)) == str(plain)
    maps, sides = torch.empty(2, 3, 64, 64, device="meta"), []
    for module in list(pooled)[:8]:
        maps = module(maps)
        sides.append(tuple(maps.shape[2:]))
    assert sides == [(side, side) for side in (64, 64, 64, 32, 32, 16, 8, 4)]


def test_a_pooled_stem_takes_the_largest_of_each_window():
    """In evaluation, of a stem that passes its images on: the rest of the network gets the maxima of theirs."""
    model = build("resnet18", (1, 5, 4), 10, device="cpu", stem_pool=True).eval()
    nn.init.dirac_(model.conv1.weight)
    model.conv1.weight.data[1:] = model.conv1.weight.data[:1]
    images = torch.arange(20.0).reshape(1, 1, 5, 4)
    windows = torch.tensor([[5.0, 7], [13, 15], [17, 19]]) / (1 + model.bn1.eps) ** 0.5
    assert torch.allclose(model[:4](images), windows.expand(1, 64, 3, 2))
    assert torch.equal(model(images), model[4:](model[:4](images)))


# Multiply-adds of a stem of 64 channels for all its pixels, and of the layers after it for a quarter of them.
POOLED_FLOPS = [
    ("resnet18", 224, 1000, 13_738_811_392, 54_431_948_800),
    ("resnet34", 224, 1000, 28_536_315_904, 113_621_966_848),
    ("resnet50_cifar", 224, 1000, 31_930_482_688, 127_189_417_984),
    ("resnet50_cifar", 64, 200, 2_607_054_848, 10_383_294_464),
]


@pytest.mark.parametrize(("name", "side", "classes", "pooled", "plain"), POOLED_FLOPS)
def test_a_pooled_stem_leaves_a_quarter_of_the_flops_of_later_layers(name, side, classes, pooled, plain):
    shape = (3, side, side)
    dense, small = (forward_flops(build(name, shape, classes, stem_pool=pool), shape) for pool in (False, True))
    assert (sum(small.values()), sum(dense.values())) == (pooled, plain)
    same = {"conv1": 2 * side**2 * 64 * 27, "linear": dense["linear"]}
    assert small == {name: n // 4 for name, n in dense.items()} | same


def test_published_resnets_with_their_stem_have_four_times_the_flops_of_torchvisions():
    """The presets of shuffled blocks tell these figures."""
    images = (3, 224, 224)
    usual = {"resnet18": "resnet18_imagenet", "resnet34": "resnet34_imagenet", "resnet50_cifar": "resnet50"}
    flops = [
        [sum(forward_flops(model, images).values()) for model in (build(name, images, 1000, stem_pool=True), other)]
        for name, other in ((name, build(other, images, 1000)) for name, other in usual.items())
    ]
    assert [round(ours / theirs, 2) for ours, theirs in flops] == [3.79, 3.89, 3.90]


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 3), (2, 9, 33)])
def test_a_pooled_stem_takes_images_of_any_size(name, shape):
    assert output_shape(build(name, shape, 7, stem_pool=True), shape) == (2, 7)


def test_other_models_have_no_pooled_stem():
    assert [name for name in NAMES if "stem_pool" in registry.find("model", name).options] == POOLED


@pytest.mark.parametrize("pool", [1, "yes", None])
def test_a_pooled_stem_is_there_or_not(pool):
    with pytest.raises(ValueError, match="stem_pool="):
        build("resnet18", (3, 8, 8), 10, stem_pool=pool)


def test_bottleneck_has_its_stride_in_the_3x3_convolution_and_adds_its_shortcut():
    block = build("resnet50_cifar", (3, 8, 8), 10, device="cpu").layer2[0].eval()
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
    assert (block.conv2.kernel_size, block.conv2.in_channels, block.conv3.out_channels) == ((3, 3), 128, 512)
    nn.init.zeros_(block.conv3.weight)  # what is left is the shortcut
    maps = torch.linspace(-1, 1, 256 * 16).reshape(1, 256, 4, 4)
    assert torch.equal(block(maps), block.shortcut(maps).clamp(min=0))


def test_thin_cifar_resnets_start_by_fan_in():
    torch.manual_seed(0)
    model = build("resnet20", (3, 32, 32), 100, device="cpu")
    strided = model.layer3[0].conv1.weight  # 32 -> 64: fan-in and fan-out differ
    assert strided.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)
    assert model.linear.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert model.linear.bias is not None


def test_vgg19_starts_by_fan_out_and_averages_its_last_maps():
    torch.manual_seed(0)
    model = build("vgg19", (3, 32, 32), 10, device="cpu")
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    assert [m.bias for m in convolutions] == [None] * 16
    assert convolutions[2].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.03)  # 64 -> 128
    (classifier,) = model.classifier
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not classifier.bias.any()
    maps = torch.rand(2, 512, 2, 2)
    assert torch.equal(model.features[-1](maps), nn.AvgPool2d(2)(maps))
    pools = [type(m) for m in model.features if "Pool" in type(m).__name__]
    assert pools == [nn.MaxPool2d] * 4 + [nn.AdaptiveAvgPool2d]


@pytest.mark.parametrize(("name", "letters"), [("vgg_d", "lrb" * 2 + "l"), ("vgg_like", "lrb" + "l"), ("vgg16", "l")])
def test_vgg_classifiers(name, letters):
    model = build(name, (3, 32, 32), 10)
    kinds = {nn.Linear: "l", nn.ReLU: "r", nn.BatchNorm1d: "b"}
    assert "".join(kinds[type(m)] for m in model.classifier) == letters
    assert {m.in_features for m in model.classifier if isinstance(m, nn.Linear)} == {512}
    kernels = {m.kernel_size for m in model.features if isinstance(m, nn.Conv2d)}
    assert (kernels, sum(isinstance(m, nn.Conv2d) for m in model.features)) == ({(3, 3)}, 13)


def test_alexnet_shrinks_by_its_strides_alone():
    model, sides = build("alexnet_s", (3, 32, 32), 10), []
    maps = torch.empty(2, 3, 32, 32, device="meta")
    for module in model.features:
        maps = module(maps)
        if isinstance(module, nn.Conv2d):
            sides.append(maps.shape[-1])
    assert sides == [13, 7, 4, 2, 1]
    assert [type(m) for m in model.classifier] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]


def test_wrn_starts_by_fan_out_with_a_classifier_that_has_no_offset():
    torch.manual_seed(0)
    model = build("wrn_22_2", (3, 32, 32), 10, device="cpu")
    widening = model.block3[0].conv1.weight  # 64 -> 128
    assert widening.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.03)
    assert model.block3[0].shortcut.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert not model.fc.bias.any()


@pytest.mark.parametrize("name", WRN)
def test_wrn_has_the_depth_and_widths_of_its_name(name):
    depth, widen = (int(number) for number in name.split("_")[1:])
    model = build(name, (3, 32, 32), 10)
    # Besides the depth - 4 in blocks: the stem, three shortcuts, the classifier.
    assert len(layers(model)) == depth + 1
    assert [stage[-1].conv2.out_channels for stage in (model.block1, model.block2, model.block3)] == [
        16 * widen,
        32 * widen,
        64 * widen,
    ]
    assert [stage[0].conv1.stride[0] for stage in (model.block1, model.block2, model.block3)] == [1, 2, 2]


def test_wrn_block_adds_its_maps_or_the_shortcut_of_the_activated_maps():
    model = build("wrn_22_2", (3, 8, 8), 10, device="cpu").eval()
    widening, same = model.block1[0], model.block1[1]
    for block in (widening, same):
        nn.init.zeros_(block.conv2.weight)  # what is left is the shortcut
    maps = torch.linspace(-1, 1, 16 * 16).reshape(1, 16, 4, 4)
    assert torch.equal(widening(maps), widening.shortcut(torch.relu(widening.bn1(maps))))
    maps = torch.linspace(-1, 1, 32 * 16).reshape(1, 32, 4, 4)
    assert torch.equal(same(maps), maps)


def test_wrn_drops_out_between_its_convolutions_when_it_trains():
    dropped = build("wrn_22_2", (3, 8, 8), 10, device="cpu", dropout=0.5)
    seen = []
    dropped.block1[0].conv2.register_forward_pre_hook(lambda _, maps: seen.append((maps[0] == 0).float().mean().item()))
    images = torch.randn(8, 3, 8, 8)
    for training in (True, False):
        dropped.train(training)(images)
    assert seen[0] > seen[1] + 0.15  # ReLU gives zeros too, about one half of them
    plain = build("wrn_22_2", (3, 8, 8), 10, device="cpu", dropout=0.0).train()
    assert torch.equal(plain(images), plain(images))


def test_default_dropouts_are_those_of_the_recipes():
    defaults = {name: registry.find("model", name).defaults["dropout"] for name in WRN}
    assert defaults == dict.fromkeys(WRN, 0.3) | {"wrn_28_10": 0.0}


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_wrn_refuses_a_dropout_that_is_no_proper_fraction(dropout):
    with pytest.raises(ValueError, match=r"wrn_22_2: dropout=.*: must be (a finite number )?in \[0, 1\)"):
        build("wrn_22_2", (3, 8, 8), 10, dropout=dropout)


def test_torchvision_is_imported_by_the_networks_that_are_made_of_it_only():
    code = f"""
import sys
import torch
from dst import registry
torch.set_default_device("meta")
for name in registry.members("model"):
    build = registry.find("model", name).load()
    if name not in {[*IMAGENET, *VIT]}:
        build((3, 32, 32), 10, **({{"hidden": [8]}} if name == "mlp" else {{}}))
print("torchvision" in sys.modules)
registry.find("model", "resnet50").load()((3, 32, 32), 10)
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", VIT)
@settings(max_examples=20, deadline=None)
@given(side=st.integers(0, 70), longer=st.integers(0, 2))
def test_transformers_build_exactly_if_patches_fill_a_square(name, side, longer):
    patch = SMALLEST[name]
    if longer == 0 and side and side % patch == 0:
        assert output_shape(build(name, (2, side, side), 3), (2, side, side)) == (2, 3)
        return
    with pytest.raises(ModelError) as error:
        build(name, (2, side, side + longer), 3)
    (remedy,) = re.findall(r"set size=(\d+) or another multiple of", str(error.value))
    assert output_shape(build(name, (2, int(remedy), int(remedy)), 3), (2, int(remedy), int(remedy))) == (2, 3)
    assert 0 <= int(remedy) - (side + longer) <= patch


@pytest.mark.parametrize(
    ("shape", "given"),
    [((3, 30, 30), "30x30 (3 channels)"), ((1, 32, 28), "32x28 (1 channel)"), ((3, 29, 31), "29x31 (3 channels)")],
)
def test_error_of_images_that_patches_do_not_fill_says_how_to_mend_it(shape, given):
    with pytest.raises(ModelError) as error:
        build("vit_tiny", shape, 10)
    assert str(error.value) == (
        f"model vit_tiny cuts square images into patches of 4x4, these are {given}: set size=32 or another multiple of "
        "4, or choose another model"
    )


def test_transformers_are_torchvisions_own():
    """But for the classifier of the small one, which torchvision starts from zeros."""
    from torchvision.models import VisionTransformer, vit_b_16

    torch.manual_seed(0)
    ours = build("vit_tiny", (3, 32, 32), 10, device="cpu").state_dict()
    torch.manual_seed(0)
    theirs = VisionTransformer(32, 4, 6, 3, 192, 768, num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == ["heads.head.weight"]
    assert ours["heads.head.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in vit_b_16().state_dict().items()}
    assert {key: value.shape for key, value in build("vit_b_16", *IMAGES).state_dict().items()} == shapes


def test_transformers_initialise_the_stem_of_other_channels_likewise():
    torch.manual_seed(0)
    stem = build("vit_tiny", (1, 8, 8), 10, device="cpu").conv_proj
    assert tuple(stem.weight.shape) == (192, 1, 4, 4)
    assert stem.weight.std().item() == pytest.approx(1 / 4, rel=0.05)
    assert not stem.bias.any()


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
    expected = {n: member.defaults.get(n, inspect.Parameter.empty) for n in member.options}
    assert keyword_only == expected


# ---------------------------------------------------------------------------------------------------------------------
# Vectors, and perceptrons with batch norm


@any_model
def test_vectors_are_for_perceptrons(name):
    if name in ("mlp", "lenet_300_100", "mlp_cifar10"):
        assert output_shape(build(name, (30,), 2), (30,)) == (2, 2)
        return
    with pytest.raises(
        ModelError, match=rf"model {name} needs images \(channels, height, width\), these samples are vec"
    ):
        build(name, (30,), 2)


def test_batch_norm_comes_after_each_relu_and_changes_no_first_weight():
    shape, hidden = (1, 2, 3), [5, 4]
    mlp = registry.find("model", "mlp").load()
    torch.manual_seed(0)
    plain = mlp(shape, 3, hidden=hidden)
    torch.manual_seed(0)
    normed = mlp(shape, 3, hidden=hidden, batch_norm=True)
    assert [name for name, _ in plain.named_children()] == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]
    names = ["flatten", "fc1", "relu1", "bn1", "fc2", "relu2", "bn2", "fc3"]
    assert [name for name, _ in normed.named_children()] == names
    assert all(torch.equal(value, normed.state_dict()[key]) for key, value in plain.state_dict().items())

    inputs = torch.randn(7, *shape)
    hidden_one = torch.relu(inputs.flatten(1) @ normed.fc1.weight.T + normed.fc1.bias)
    scaled = (hidden_one - hidden_one.mean(0)) / (hidden_one.var(0, correction=0) + 1e-5).sqrt()
    hidden_two = torch.relu(scaled @ normed.fc2.weight.T + normed.fc2.bias)
    scaled = (hidden_two - hidden_two.mean(0)) / (hidden_two.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(normed(inputs), scaled @ normed.fc3.weight.T + normed.fc3.bias, atol=1e-5)


def test_the_published_network_for_tables_has_its_weights():
    with torch.device("meta"):
        model = registry.find("model", "mlp").load()((16,), 2, hidden=[256] * 3, batch_norm=True)
    assert sum(layer.weight.numel() for layer in layers(model).values()) == 135_680
