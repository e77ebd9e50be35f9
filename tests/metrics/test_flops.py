"""FLOPs against published figures and closed forms, and proof that counting leaves the model alone."""

import copy
import hashlib

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from dst.metrics.flops import Flops, Ledger, forward_flops
from dst.sparsity.scope import Scope


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


def test_vit_b_16_at_224():
    """With n = 196 + 1 tokens of width 768, each of 12 blocks spends 24 * 768^2 * n in layers, 4 * 768 * n^2 aside."""
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        model = vit_b_16()
    dense = forward_flops(model, (3, 224, 224))
    sizes = {layer.name: layer.size for layer in Scope().layers(model)}
    assert sum(dense.values()) == 35_127_656_448
    assert sum(sizes.values()) == 86_292_480
    by_part = {part: sum(n for name, n in dense.items() if name.endswith(part)) for part in (".in_proj", "+values")}
    assert by_part == {".in_proj": 12 * 2 * 3 * 768**2 * 197, "+values": 12 * 4 * 768 * 197**2}
    flops = Flops(dense, sizes)
    assert (flops.dense, flops.test(sizes)) == (35_127_656_448,) * 2
    never_sparse = flops.test(dict.fromkeys(sizes, 0))
    assert never_sparse == by_part["+values"]


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


# -- attention ---------------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """Attention of a sample's tokens to themselves, or to others, of other number and width."""

    def __init__(self, width, heads, others=None, *, need_weights=False, **options):
        super().__init__()
        self.others, self.need_weights = others, need_weights
        self.attention = nn.MultiheadAttention(width, heads, **options)

    def forward(self, x):
        x = x if self.attention.batch_first else x.transpose(0, 1)
        if self.others is None:
            return self.attention(x, x, x, need_weights=self.need_weights)[0]
        batch, number = x.shape[1 - self.attention.batch_first], self.others
        shape = (batch, number) if self.attention.batch_first else (number, batch)
        key = x.new_ones(*shape, self.attention.kdim)
        value = key if self.attention.kdim == self.attention.vdim else x.new_ones(*shape, self.attention.vdim)
        return self.attention(query=x, key=key, value=value, need_weights=self.need_weights)[0]


def counted_by_torch(model, shape):
    """Count in training mode on the CPU, with the attention of which torch's counter sees the products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train()(torch.ones(1, *shape))
    return counter.get_total_flops()


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 4),
    head=st.integers(1, 3),
    tokens=st.integers(1, 6),
    others=st.none() | st.integers(1, 6),
    apart=st.booleans(),
    batch_first=st.booleans(),
    need_weights=st.booleans(),
    bias=st.booleans(),
)
def test_attention(heads, head, tokens, others, apart, batch_first, need_weights, bias):
    width, keys = heads * head, tokens if others is None else others
    apart = apart and others is not None
    widths = {"kdim": width + 1, "vdim": width + 2} if apart else {}
    options = {"batch_first": batch_first, "need_weights": need_weights, "bias": bias, **widths}
    model = Attending(width, heads, others, **options)
    found = forward_flops(model, (tokens, width))
    if apart:
        into = {"q": tokens * width, "k": keys * (width + 1), "v": keys * (width + 2)}
        expected = {f"attention.{part}_proj": 2 * width * inputs for part, inputs in into.items()}
    else:
        expected = {"attention.in_proj": 2 * width * width * (tokens + 2 * keys)}
    expected["attention.out_proj"] = 2 * width * width * tokens
    expected["attention.scores+values"] = 4 * width * tokens * keys
    assert found == expected
    assert sum(found.values()) == counted_by_torch(model, (tokens, width))
    assert [layer.name for layer in Scope().layers(model)] == list(expected)[:-1]


@pytest.mark.parametrize("norm_first", [True, False])
def test_nothing_is_hidden_by_the_fused_layer_of_evaluation(norm_first):
    """On a CPU this layer is one operation in evaluation, of which torch's counter sees nothing."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer.eval()(torch.ones(1, 5, 8))
    assert counter.get_total_flops() == 0
    assert forward_flops(layer, (5, 8)) == {
        "self_attn.in_proj": 2 * 5 * 3 * 64,
        "self_attn.out_proj": 2 * 5 * 64,
        "linear1": 2 * 5 * 128,
        "linear2": 2 * 5 * 128,
        "self_attn.scores+values": 4 * 8 * 25,
    }
    assert sum(forward_flops(layer, (5, 8)).values()) == counted_by_torch(layer, (5, 8))


def test_attention_by_itself_and_its_shared_weights():
    class Twice(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(*[super().forward(x, x, x)[0]] * 3)[0]

    assert forward_flops(Twice(4, 2, batch_first=True), (3, 4)) == {
        **{"in_proj": 2 * 2 * 3 * 3 * 16, "out_proj": 2 * 2 * 3 * 16, "scores+values": 2 * 4 * 4 * 9}
    }
    model = nn.Sequential(Attending(4, 2), Attending(4, 2))
    model[1].attention.in_proj_weight = model[0].attention.in_proj_weight
    found = forward_flops(model, (3, 4))
    assert found.keys() & {"0.attention.in_proj", "1.attention.in_proj"} == {"0.attention.in_proj"}
    assert found["0.attention.in_proj"] == 2 * 2 * 3 * 3 * 16


def test_a_projection_that_is_computed_anew_counts_with_its_attention():
    model = Attending(4, 2)
    parametrize.register_parametrization(model.attention, "in_proj_weight", nn.Softsign())
    whole = 2 * 3 * 3 * 16 + 4 * 4 * 9
    assert forward_flops(model, (3, 4)) == {
        **{"attention.in_proj": 0, "attention.out_proj": 2 * 3 * 16, "attention.scores+values": whole}
    }


def test_a_weight_counts_wherever_it_is_multiplied_by():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 6, bias=False)

        def forward(self, x):
            return nn.functional.linear(self.first(x), self.first.weight.t())

    assert forward_flops(Tied(), (4,)) == {"first": 2 * 2 * 24}


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


@given(active=counts, trained=counts)
def test_a_backward_pass_may_be_for_the_gradients_of_more_weights_than_are_active(active, trained):
    flops = Flops(DENSE, SIZES, trained)
    plain = Flops(DENSE, SIZES)
    assert flops.test(active) == plain.test(active)
    assert flops.backward(active) == plain.test(active) + plain.test(trained)
    assert Flops(DENSE, SIZES, active).backward(active) == plain.backward(active)


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
