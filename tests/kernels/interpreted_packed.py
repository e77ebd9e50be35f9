"""Networks with packed units, in Triton's interpreter (see ``tests/kernels/interpreted_blocks.py``)."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import triton
from torch import nn

from dst.kernels import choice
from dst.kernels.build import UnavailableError
from dst.kernels.shape import Shape
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.pattern.shuffled_block import shuffled_block
from dst.sparsity.scope import Scope
from dst.sparsity.weights.masked_dense import MaskedDense
from dst.sparsity.weights.packed import Packed
from dst.sparsity.weights.packing import TimedUnits, UnitsRule, packed_units, unpackable
from tests.kernels.interpreted_blocks import drawn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def masks_of(layers, seed=0):
    """Return masks: of units where layers are packed, of single weights elsewhere."""
    torch.manual_seed(seed)
    found = []
    for layer in layers:
        if layer.shape[0] % 32 or layer.shape[1] % 16:
            found.append(torch.rand(layer.shape) < 0.5)
            continue
        shape = Shape(layer.shape[1], layer.shape[0], kernel=tuple(layer.shape[2:]) or (1, 1))
        columns = layer.shape[1] // 16 * shape.taps
        mask = drawn(shape, 32, [1, 1 + columns // 8][: layer.shape[0] // 32], seed)
        found.append(mask.view(layer.shape))
    return found


def held(how, optimizer, to_channels_last=False):
    model = net()
    if to_channels_last:
        model = model.to(memory_format=torch.channels_last)
    layers = Scope().layers(model)
    masks = masks_of(layers)
    given = layers, masks, [int(mask.sum()) for mask in masks]
    weights = MaskedDense(*given) if how == "masked" else Packed(model, *given, how)
    weights.attach(optimizer(model.parameters()))
    return model, weights


def step(model, weights, number, samples=16, dense_gradient=False):
    torch.manual_seed(number)
    x = torch.randn(samples, 3, 4, 4)
    weights.optimizer.zero_grad()
    weights.expect(dense_gradient=dense_gradient)
    model(x).square().mean().backward()
    gradients = [None if gradient is None else gradient.clone() for gradient in weights.gradients]
    weights.mask_gradients()
    weights.optimizer.step()
    weights.stepped()
    return gradients


def assert_alike(one, other):
    for (name, ours), theirs in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
    mine, state = (pair[1].optimizer.state_dict()["state"] for pair in (one, other))
    for number, of in mine.items():
        for name, value in of.items():
            torch.testing.assert_close(value, state[number][name], rtol=1e-4, atol=1e-6)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return torch.optim.AdamW(parameters, 0.01)


@pytest.mark.parametrize("to_channels_last", [False, True])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_training_is_that_of_masks(optimizer, to_channels_last):
    """Also through an update of the masks, whose gradient is dense, and a last batch of few samples."""
    ours = held(packed_units(), optimizer, to_channels_last)
    theirs = held("masked", optimizer, to_channels_last)
    assert ours[1].packed == ["2", "6"]
    assert ours[1].told == "2 of 4 layers are packed; masked: 0, 8 (fewer than 16 inputs or outputs)"
    for number in range(6):
        gradients = [
            step(*pair, number, samples=3 if number == 4 else 16, dense_gradient=number == 2) for pair in (ours, theirs)
        ]
        if number == 2:
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
            masks = masks_of(Scope().layers(net()), seed=1)
            for _, weights in (ours, theirs):
                weights.set_masks(masks, [int(mask.sum()) for mask in masks])
            assert ours[1].packed == ["2", "6"]
        assert_alike(ours, theirs)
    parameter = dict(ours[0].named_parameters())["2.weight"]
    assert parameter.shape == (int(masks[1].sum()),)  # the optimizer has nothing else


def test_dsb_is_packed_through_its_updates():
    """The pattern's own masks, with every third step an update that regroups; masks and weights as with masks alone."""
    runs = []
    for how in ("masked", packed_units()):
        model = net()
        pattern = partial(shuffled_block, block_size=32, column_unit=16)
        options = {"density": 0.3, "distribution": "uniform", "init": "magnitude", "pattern": pattern, "seed": 1}
        plan = UpdatePlan(every=3, total_steps=8, start=0.0)
        runs.append((model, Sparsifier(model, sgd(model.parameters()), compute=how, plan=plan, **options)))
    assert runs[1][1].weights.packed == ["2", "6"]
    for number in range(7):
        for model, sparsifier in runs:
            torch.manual_seed(number)
            sparsifier.optimizer.zero_grad()
            model(torch.randn(16, 3, 4, 4)).square().mean().backward()
            sparsifier.step()
        (masked, theirs), (packed, ours) = runs
        assert all(torch.equal(*pair) for pair in zip(ours.topology.masks, theirs.topology.masks, strict=True))
        assert ours.weights.packed == ["2", "6"]
        assert_alike((packed, ours), (masked, theirs))
    assert ours.updates == 2
    assert ours.topology.churn > 0.1


@pytest.mark.parametrize("is_said", [False, True])
def test_compiled_kernels_lie_where_the_run_writes(tmp_path, monkeypatch, is_said):
    """Unless the user says where."""
    monkeypatch.setenv("TRITON_CACHE_DIR", "/said")
    if not is_said:
        monkeypatch.delenv("TRITON_CACHE_DIR")
    with triton.knobs.cache.scope():
        packed_units(tmp_path)
        assert triton.knobs.cache.dir == ("/said" if is_said else str(tmp_path / "triton"))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_old_gpus_are_refused(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with (
        nullcontext()
        if capability == (8, 0)
        else pytest.raises(UnavailableError, match=r"capability 7\.5, and .* 8\.0")
    ):
        packed_units()


def test_autocast_is_heard():
    model, weights = held(packed_units(), sgd)
    seen = []
    model[2].register_forward_hook(lambda _, given, y: seen.append((given[0].dtype, y.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(16, 3, 4, 4)).float().square().mean().backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert dict(model.named_parameters())["2.weight"].grad.dtype == torch.float32
    assert weights.packed == ["2", "6"]


def test_masks_without_units_stay():
    model = net()
    layers = Scope().layers(model)
    torch.manual_seed(0)
    masks = [torch.rand(layer.shape) < 0.1 for layer in layers]
    weights = Packed(model, layers, masks, [int(mask.sum()) for mask in masks], UnitsRule())
    weights.attach(sgd(model.parameters()))
    step(model, weights, 0)
    assert weights.packed == []
    assert "masked: 2, 6 (denser than 0.5, or without units of 16 adjacent inputs that groups of 32" in weights.told


def test_layers_that_do_not_divide_are_told():
    model = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 40), nn.Linear(48, 96))
    found = unpackable(model, Scope().layers(model), "cuda")
    assert found == dict.fromkeys(["0", "1"], "outputs not divisible by 32, or inputs by 16")
    assert unpackable(model, Scope().layers(model)) == {}


def test_layers_are_timed_on_what_they_are_given():
    taken = []

    def time(met, mask):
        shape, samples = met.product
        taken.append((shape.channels, samples))
        found = choice.timed_units(shape, samples, mask, input_gradient=not met.is_first, budget_s=0)
        assert min(found.masked_ms, found.packed_ms) > 0
        assert found.density == int(mask.sum()) / mask.numel()
        return choice.Timing(found.density, 2.0, 1.0 if shape.channels == 32 else 3.0)

    model, weights = held(TimedUnits(None, time, lambda _: None), sgd)
    assert weights.packed == []
    for number in range(2):
        step(model, weights, number)
    assert taken == [(32, 16), (256, 16)]
    assert weights.packed == ["2"]
    assert [decision.choice for decision in weights.decisions] == ["packed", "masked"]
