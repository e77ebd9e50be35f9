"""FLOPs against published figures and closed forms, and proof that counting leaves the model alone."""

import copy
import hashlib

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from dst.metrics.flops import Flops, Ledger, forward_flops


@pytest.fixture(scope="module")
def resnet50():
    from torchvision.models import resnet50

    with torch.device("meta"):
        return resnet50()


def weights(model):
    return {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


# ---------------------------------------------------------------------------------------------------------------------
# Published figures


def test_resnet50_at_224(resnet50):
    dense = forward_flops(resnet50, (3, 224, 224))
    assert sum(dense.values()) == 8_178_368_512
    assert list(dense) == list(weights(resnet50))
    assert dense["conv1"] == 2 * 112 * 112 * 64 * 3 * 7 * 7
    assert dense["fc"] == 2 * 2048 * 1000


def test_hundred_epochs_of_imagenet(resnet50):
    flops = Flops(forward_flops(resnet50, (3, 224, 224)), weights(resnet50))
    total = flops.dense_training(1_281_167 * 100)
    assert total == 3 * 8_178_368_512 * 1_281_167 * 100
    assert f"{total:.3e}" == "3.143e+18"


def test_resnet50_all_layers_at_a_fifth(resnet50):
    dense, sizes = forward_flops(resnet50, (3, 224, 224)), weights(resnet50)
    flops = Flops(dense, sizes)
    active = {name: size // 5 for name, size in sizes.items()}
    assert flops.test(active) == sum(dense[name] * active[name] // sizes[name] for name in dense)
    assert flops.test(active) / flops.dense == pytest.approx(0.2, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    bias=st.booleans(),
)
def test_convolution(groups, inputs, outputs, kernel, stride, padding, dilation, size, bias):
    out = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    assume(all(n + 2 * padding > dilation * (k - 1) for n, k in zip(size, kernel, strict=True)))
    channels, filters = groups * inputs, groups * outputs
    conv = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias)
    per_weight = 2 * out[0] * out[1]
    assert forward_flops(nn.Sequential(conv), (channels, *size)) == {
        "0": per_weight * filters * inputs * kernel[0] * kernel[1]
    }


@settings(max_examples=30, deadline=None)
@given(inputs=st.integers(1, 50), outputs=st.integers(1, 50), rows=st.integers(1, 5), bias=st.booleans())
def test_linear(inputs, outputs, rows, bias):
    linear = nn.Linear(inputs, outputs, bias)
    assert forward_flops(nn.Sequential(linear), (inputs,)) == {"0": 2 * inputs * outputs}
    assert forward_flops(linear, (inputs,)) == {"": 2 * inputs * outputs}
    assert forward_flops(linear, (rows, inputs)) == {"": 2 * rows * inputs * outputs}


def test_convolutions_of_other_kinds():
    assert forward_flops(nn.Conv1d(3, 4, 5), (3, 9)) == {"": 2 * 5 * 3 * 4 * 5}
    assert forward_flops(nn.Conv3d(2, 3, 2), (2, 3, 4, 5)) == {"": 2 * (2 * 3 * 4) * 2 * 3 * 8}
    # Transposed: every input position meets every weight.
    assert forward_flops(nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 6)) == {"": 2 * 30 * 3 * 4 * 4}


class Odd(nn.Module):
    """A layer used twice, one under two names, one never used; everything that a forward pass may disturb."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 9)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(6, 2)
        self.alias = self.last
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.alias(self.dropout(self.norm(self.twice(self.twice(x)))))


def test_layers_used_twice_never_and_under_two_names():
    assert forward_flops(Odd(), (6,)) == {"twice": 2 * 2 * 36, "unused": 0, "last": 2 * 12}


def test_a_shared_weight_counts_for_its_first_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert forward_flops(model, (4,)) == {"0": 2 * 32, "1": 32}


def test_parametrized_layers_count_by_their_name():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    for layer in model:
        parametrize.register_parametrization(layer, "weight", nn.Softsign())
    assert forward_flops(model, (4,)) == {"0": 40, "1": 30}


def test_half_precision():
    assert forward_flops(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half(), (3, 3, 3)) == {"0": 2 * 3 * 4 * 9}


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) @ torch.ones(4, 3, device=x.device)


def test_flops_outside_the_layers_are_an_error():
    with pytest.raises(ValueError, match="24 of 56 FLOPs of Product are spent outside"):
        forward_flops(Product(), (4,))


# ---------------------------------------------------------------------------------------------------------------------
# Counting leaves the model alone


def digest(model):
    """Everything about a model that counting might disturb, by value."""
    state = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        state.update(name.encode() + tensor.detach().numpy().tobytes())
    return {
        "state": state.hexdigest(),
        "identities": [(id(t), t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [
            {name: list(value.items()) for name, value in vars(m).items() if "_hooks" in name and value}
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "calls": model.calls,
    }


def surroundings():
    return {
        "rng": torch.get_rng_state().tolist(),
        "global hooks": [
            list(getattr(torch_module, name).items())
            for name in sorted(vars(torch_module))
            if name.startswith("_global_") and "hooks" in name and isinstance(getattr(torch_module, name), dict)
        ],
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }


def refuse(*_):
    raise AssertionError("a hook of the model ran")


def test_counting_touches_neither_the_model_nor_its_surroundings():
    torch.manual_seed(3)
    model = Odd().train()
    model.norm.eval()
    model.unused.weight.requires_grad_(False)
    model(torch.randn(5, 6)).sum().backward()
    for module in model.modules():
        module.register_forward_pre_hook(refuse)
        module.register_forward_hook(refuse, always_call=True)
        module.register_full_backward_hook(refuse)
    model.last.weight.register_hook(refuse)
    before, around = digest(model), surroundings()
    assert sum(map(bool, before["hooks"])) == 6  # the digest sees the hooks
    assert len(around["global hooks"]) >= 2
    forward_flops(model, (6,))
    assert digest(model) == before
    assert surroundings() == around


def test_counting_copies_no_weight():
    class Heavy(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.plain = torch.zeros(3)  # neither parameter nor buffer

    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError("what the hooks hold was copied")

        def hook(self, *_):
            raise AssertionError("a hook of the model ran")

    model = Heavy()
    model.register_forward_hook(Uncopyable().hook)
    model.weight.__class__ = type("Guarded", (nn.Parameter,), {"__deepcopy__": refuse})
    with pytest.raises(AssertionError):
        copy.deepcopy(model)
    assert forward_flops(model, (4,)) == {"": 16}


# ---------------------------------------------------------------------------------------------------------------------
# Sparse networks

DENSE = {"a": 600, "b": 40, "c": 7}
SIZES = {"a": 100, "b": 20}  # 6 and 2 FLOPs per weight; c stays dense

counts = st.fixed_dictionaries({name: st.integers(0, size) for name, size in SIZES.items()})


@given(active=counts, samples=st.integers(1, 10**15))
def test_sparse_and_training_flops(active, samples):
    flops = Flops(DENSE, SIZES)
    sparse = 6 * active["a"] + 2 * active["b"] + 7
    assert flops.dense == 647
    assert flops.test(active) == sparse
    ledger = Ledger(flops)
    ledger.training.forward(active, samples)
    ledger.training.backward(active, samples)
    assert ledger.total == 3 * sparse * samples
    ledger.training.dense_gradient(active, samples)
    assert ledger.total == (2 * sparse + 647) * samples
    assert flops.dense_training(samples) == 3 * 647 * samples


def test_full_layers_cost_the_dense_network():
    flops = Flops(DENSE, SIZES)
    assert flops.test(SIZES) == 647
    assert flops.dense_gradient(SIZES) == 0
    assert 9 * (flops.test(SIZES) + flops.backward(SIZES)) == flops.dense_training(9) == 3 * 647 * 9


def test_what_only_measures_is_no_part_of_training():
    ledger = Ledger(Flops(DENSE, SIZES))
    for account in (ledger.training, ledger.correction, ledger.batch_norm, ledger.measuring):
        account.dense_forward(2)
    assert ledger.total == 3 * 2 * 647
    other = Ledger(ledger.flops)
    other.load_state_dict(ledger.state_dict())
    assert (other.total, other.measuring.total) == (ledger.total, 2 * 647)


def test_no_maskable_layer_at_all():
    assert Flops(DENSE, {}).test({}) == 647


def test_counts_changed_in_place_are_seen():
    flops, active = Flops(DENSE, SIZES), {"a": 10, "b": 10}
    assert flops.test(active) == 87
    active["a"] = 11
    assert flops.test(active) == 93


def test_integers_of_other_libraries_neither_overflow_nor_leak():
    import numpy as np

    flops = Flops({"a": 2**70}, {"a": 4})
    assert flops.test({"a": np.int64(3)}) == 3 * 2**68
    assert type(Flops(DENSE, SIZES).test({"a": np.int32(1), "b": np.int64(1)})) is int


@pytest.mark.parametrize(
    ("active", "message"),
    [
        ({"a": 1}, "these differ: b"),
        ({"a": 1, "b": 1, "c": 1}, "these differ: c"),
        ({"a": 101, "b": 1}, "layer 'a' cannot have 101 active weights: it has 100"),
        ({"a": -1, "b": 1}, "layer 'a' cannot have -1 active weights"),
    ],
)
def test_impossible_counts(active, message):
    flops = Flops(DENSE, SIZES)
    with pytest.raises(ValueError, match=message):
        flops.test(active)
    assert flops.test({"a": 0, "b": 0}) == 7


def test_fractions_of_weights_are_refused():
    with pytest.raises(TypeError):
        Flops(DENSE, SIZES).test({"a": 1.5, "b": 1})


def test_sizes_that_do_not_fit_the_dense_counts():
    with pytest.raises(ValueError, match="maskable layer 'd' has no dense FLOPs; there are those of a, b, c"):
        Flops(DENSE, {"d": 1})
    with pytest.raises(ValueError, match="layer 'a': 600 FLOPs are not a multiple of its 7 weights"):
        Flops(DENSE, {"a": 7})
