"""Packed weights in anybody's training loop: what they are beside masks, what may come in between, what is refused."""

import copy
import gc
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dst.models.resnet_cifar import resnet20
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.reparametrize import edge_popup
from dst.sparsity.weights import packed_layer
from tests.sparsity.test_packed_methods import assert_close, net
from tests.states import same, states_of


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)


def adam(model):
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


def sparsified(model, compute="masked", optimizer=sgd, every=3, **options):
    options = {"density": 0.1, "plan": UpdatePlan(every=every, total_steps=100), **options}
    return Sparsifier(model, optimizer(model), compute=compute, **options)


def batch(step, samples=32, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(samples, *shape, generator=generator)


def loss_of(model, step, **of):
    return model(batch(step, **of)).square().mean()


def take(model, sparsifier, steps, **of):
    for step in steps:
        sparsifier.optimizer.zero_grad()
        loss_of(model, step, **of).backward()
        sparsifier.step()


def seeded(make=net):
    torch.manual_seed(0)
    return make()


def pair(packing, make=net, **options):
    """Return the same network twice, with its Sparsifier: held by masks, and packed."""
    models = seeded(make), seeded(make)
    held = [(model, sparsified(model, how, **options)) for model, how in zip(models, ("masked", packing), strict=True)]
    assert held[1][1].weights.packed
    return held


def assert_alike(held, atol=2e-6):
    (masked, theirs), (packed, ours) = held
    assert_close(packed.state_dict(), masked.state_dict(), "model", atol=atol)
    assert_close(ours.state_dict(), theirs.state_dict(), "sparsifier", atol=atol)
    assert_close(ours.optimizer.state_dict(), theirs.optimizer.state_dict(), "optimizer", atol=atol)


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_plain_loop(optimizer, to_none, packing):
    """Also where gradients are zeroed and not given up, so that dense ones would add up from step to step."""
    held = pair(packing, optimizer=optimizer)
    for model, sparsifier in held:
        for step in range(10):
            sparsifier.optimizer.zero_grad(set_to_none=to_none)
            loss_of(model, step).backward()
            assert sparsifier.step() == (step % 3 == 2)
    assert_alike(held, atol=2e-6 if optimizer is sgd else 5e-4)
    assert held[1][1].weights.packed == ["2", "4", "7"]
    assert held[1][1].weights.stay_masked.keys() == {"0", "9"}


@pytest.mark.parametrize("seed", range(20))
def test_an_update_moves_other_weights_only_where_scores_are_within_rounding_of_the_cut(seed, packing):
    plan = UpdatePlan(every=3, total_steps=100, order="replaces_step")
    found = []
    for how in ("masked", packing):
        torch.manual_seed(seed)
        model = net()
        sparsifier = sparsified(model, how, plan=plan, seed=seed)
        take(model, sparsifier, [100 * seed, 100 * seed + 1])
        sparsifier.optimizer.zero_grad()
        loss_of(model, 100 * seed + 2).backward()
        before, held = list(sparsifier.topology.masks), sparsifier.weights
        scores = [(weight.abs(), held.gradient(i).abs().clone()) for i, weight in enumerate(held.weights)]
        scores = [(weight.clone(), gradient) for weight, gradient in scores]
        assert sparsifier.step()
        found.append((before, scores, sparsifier.topology.masks))
    (before, scores, masks), (others_before, others_scores, others) = found
    assert all(map(torch.equal, before, others_before))
    for old, mine, (weight, gradient), (other_weight, other_gradient), new in zip(
        before, others, scores, others_scores, masks, strict=True
    ):
        assert torch.allclose(weight, other_weight, rtol=1e-4, atol=1e-7)
        assert (gradient - other_gradient).norm() < 1e-5 * gradient.norm()
        dropped, grown, differing = old & ~new, new & ~old, new ^ mine
        for undecided, score, cut in (
            (differing & old, weight, weight[dropped].amax()),
            (differing & ~old, gradient, gradient[grown].amin()),
        ):
            assert torch.all((score[undecided] - cut).abs() < 1e-4 * cut)
        assert differing.sum() <= 0.01 * new.sum()


def test_gradients_of_a_deep_network_are_as_good_as_those_of_torch(packing):
    """Dense ones, of all layers of a ResNet-20, against double precision: torch's own are 1e-6 from it."""
    gradients = []
    for how in (packing, "masked"):
        torch.manual_seed(0)
        model = resnet20((1, 8, 8), 10)
        model = model if how is packing else model.double()
        sparsifier = sparsified(model, how, every=1)
        inputs = batch(0, 48).to(next(model.buffers()).dtype)
        nn.functional.cross_entropy(model(inputs), torch.arange(48) % 10).backward()
        gradients.append([sparsifier.weights.gradient(i).double() for i in range(len(sparsifier.topology.layers))])
        assert how == "masked" or len(sparsifier.weights.packed) > 15
    for ours, exact in zip(*gradients, strict=True):
        assert (ours - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("grow", ["gradient", "momentum"])
def test_accumulation(grow, to_none, packing):
    """Several backward passes a step, of batches with and without tiles, and two before one of them."""
    held = pair(packing, grow=grow)
    for model, sparsifier in held:
        for step in range(8):
            sparsifier.optimizer.zero_grad(set_to_none=to_none)
            for part, samples in enumerate((32, 5, 17)):
                loss_of(model, 10 * step + part, samples=samples).backward()
            (loss_of(model, 10 * step + 8) + loss_of(model, 10 * step + 9, samples=3)).backward()
            sparsifier.step()
    assert_alike(held)


@pytest.mark.parametrize("to_none", [True, False])
def test_accumulation_where_active_weights_have_no_gradient(to_none, packing):
    found = []
    for compute in ("masked", packing):
        model = seeded(lambda: nn.Linear(64, 32))
        sparsifier = sparsified(model, compute, every=2, density=0.02, drop="magnitude", grow="gradient")
        unused = ~sparsifier.topology.masks[0].any(0)
        assert 0 < int(unused.sum()) < 64
        for step in range(2):  # the second one is the first with an update
            for part in range(3):
                if part < 2:  # the first one is left out
                    sparsifier.optimizer.zero_grad(set_to_none=to_none)
                (model(batch(3 * step + part, 32, (64,)) * unused) ** 3).sum().backward()
            if step == 1:
                found.append(sparsifier.weights.gradient(0).clone())
            sparsifier.step()
    assert float(found[0].abs().max()) > 1
    assert torch.allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_batch_that_is_left_out(to_none, packing):
    """Its gradients are given up without a step, at a step that would have updated: nothing of them stays."""
    held = pair(packing)
    for model, sparsifier in held:
        for step in range(7):
            sparsifier.optimizer.zero_grad(set_to_none=to_none)
            (loss_of(model, 100 + step) * 1000).backward()
            sparsifier.optimizer.zero_grad(set_to_none=to_none)
            loss_of(model, step).backward()
            sparsifier.step()
    assert_alike(held)


def test_old_losses_are_kept_over_updates(packing):
    """They hold on to the graph, and so to what accumulates gradients in the parameters' former shapes."""
    held = pair(packing)
    for model, sparsifier in held:
        losses = []
        for step in range(10):
            sparsifier.optimizer.zero_grad()
            losses += [loss_of(model, step), loss_of(model, step + 50)]  # of which one is never passed back
            losses[-2].backward()
            sparsifier.step()
    assert_alike(held)


@pytest.mark.parametrize("order", ["after_step", "replaces_step"])
@pytest.mark.parametrize("samples", [32, 4])
def test_a_forward_pass_before_an_update_is_not_passed_back_after_it(samples, order, packing):
    """As with masks, whose weights an update changes in place: never silently a gradient of other weights."""
    for model, sparsifier in pair(packing, plan=UpdatePlan(every=2, total_steps=100, order=order)):
        take(model, sparsifier, [1])
        old = loss_of(model, 2, samples=samples)
        take(model, sparsifier, [3])
        assert sparsifier.updates == 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            old.backward()
        take(model, sparsifier, [4, 5])


def test_a_forward_pass_before_a_step_is_not_passed_back_after_it(packing):
    for model, sparsifier in pair(packing):
        old = loss_of(model, 1)
        take(model, sparsifier, [2])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            old.backward()


def test_gradients_are_clipped_alike(packing):
    held = pair(packing)
    for model, sparsifier in held:

        def apply(model=model, sparsifier=sparsifier):
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            sparsifier.optimizer.step()

        for step in range(8):
            sparsifier.optimizer.zero_grad()
            loss_of(model, step).backward()
            sparsifier.step(apply)
    assert_alike(held)


def test_a_scaler_leaves_out_steps_and_postpones_updates(packing):
    held = pair(packing)
    for model, sparsifier in held:
        optimizer, scaler, said = sparsifier.optimizer, torch.amp.GradScaler("cpu", init_scale=64.0), []

        def apply(optimizer=optimizer, scaler=scaler):
            scaler.step(optimizer)
            scaler.update()

        for step in range(10):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            scaler.scale(loss * float("inf") if step in (2, 4, 8) else loss).backward()
            said.append(sparsifier.step(apply))
        assert [step for step, updated in enumerate(said) if updated] == [3, 5, 9]
    assert_alike(held)


def test_an_overflow_without_a_scaler_is_told_at_an_update(packing):
    for model, sparsifier in pair(packing):
        take(model, sparsifier, [0, 1])
        sparsifier.optimizer.zero_grad()
        (loss_of(model, 2) * float("inf")).backward()
        with pytest.raises(RuntimeError, match="gradients of step 3 were not finite and have reached the weights"):
            sparsifier.step()


@pytest.mark.parametrize("samples", [32, 4])
def test_an_overflow_of_inactive_weights_alone_postpones_the_update(samples, packing):
    """Of dense gradients, which the optimizer does not meet."""
    for model, sparsifier in pair(packing, make=lambda: nn.Sequential(nn.Linear(64, 64)), density=0.05):
        of = {"samples": samples, "shape": (64,)}
        take(model, sparsifier, [0, 1], **of)
        column = int(sparsifier.topology.masks[0].any(0).logical_not().nonzero()[0])
        for huge, updated in ((1e30, False), (1, True)):
            inputs = batch(2, **of)
            inputs[:, column] = huge
            sparsifier.optimizer.zero_grad()
            model(inputs).square().mean().backward()
            assert sparsifier.step() == updated
            assert sparsifier.postponed != updated


def test_verified_after_every_update(packing):
    for model, sparsifier in pair(packing, verify_every=1):
        take(model, sparsifier, range(7))
        assert sparsifier.updates == 2


@pytest.mark.parametrize(("grow", "reads"), [("gradient", [2, 5, 8]), ("random", []), ("momentum", range(9))])
def test_dense_gradients_are_computed_where_they_are_read_alone(grow, reads, packing, monkeypatch):
    _, (model, sparsifier) = pair(packing, grow=grow)
    calls, read = [], packed_layer.PackedLayer.read
    monkeypatch.setattr(packed_layer.PackedLayer, "read", lambda *args: calls.append(step) or read(*args))
    for step in range(9):
        assert sparsifier.needs_dense_gradient() == (step in reads)
        take(model, sparsifier, [step])
        assert sparsifier.weights.captured == []  # none is kept beyond its step
    assert calls == [step for step in reads for _ in range(3)]


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 15, 16, 31, 33, 100])
def test_batches_of_any_size(samples, packing):
    held = pair(packing)
    for model, sparsifier in held:
        take(model, sparsifier, range(4), samples=samples)
        model.eval()
        inputs = batch(9, 100)
        with torch.no_grad():
            for some in (1, 15, 16, 40):
                assert torch.allclose(model(inputs[:some]), model(inputs)[:some], atol=1e-6)
    assert_alike(held)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=2), nn.Conv2d(16, 24, (1, 3), (2, 1), bias=False), nn.Conv2d(24, 16, 5, 3, (3, 1))
    )


def test_strides_paddings_and_unbatched_images(packing):
    held = pair(packing, make=convolutions, distribution="uniform")
    for model, sparsifier in held:
        for samples in (33, 2):
            take(model, sparsifier, range(4), samples=samples, shape=(16, 9, 10))
        sparsifier.optimizer.zero_grad()
        model(batch(0, 16, (9, 10))).square().mean().backward()  # one image, whose channels are no samples
        sparsifier.step()
    assert len(held[1][1].weights.packed) == 3
    assert_alike(held)


@pytest.mark.parametrize("shape", [(), (3,), (40,), (4, 5), (2, 5, 4), (2, 1, 3, 4), (0,), (0, 7)])
def test_linear_layers_take_inputs_of_any_rank(shape, packing):
    held = pair(packing, make=lambda: nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 16)))
    found = []
    for model, sparsifier in held:
        inputs = torch.randn(*shape, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
        outputs = model(inputs)
        outputs.square().sum().backward()
        sparsifier.step()
        found.append((outputs.detach(), inputs.grad))
    assert found[0][0].shape == (*shape, 16)
    assert_close(found[1], found[0])
    assert_alike(held)


def test_images_without_samples(packing):
    for model, sparsifier in pair(packing):
        assert model(torch.zeros(0, 1, 8, 8)).shape == (0, 10)
        model(torch.zeros(0, 1, 8, 8)).sum().backward()
        sparsifier.step()


@pytest.mark.parametrize("samples", [2, 40])
def test_inputs_of_a_wrong_size(samples, packing):
    """Kernels would read beyond their memory."""
    _, (model, _) = pair(packing)
    convolution, linear = model[2], model[7]
    for layer, shape in (
        (convolution, (15, 8, 8)),
        (convolution, (17, 8, 8)),
        (linear, (719,)),
        (linear, (1440,)),
        (linear, (1,)),
        (linear, ()),
    ):
        with pytest.raises(RuntimeError, match=r"shape|size"):
            layer(torch.zeros(samples, *shape))
    with pytest.raises(RuntimeError, match=r"smaller than the kernel|can't be greater than actual input size"):
        convolution(torch.zeros(samples, 16, 0, 1))
    with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
        convolution(torch.zeros(samples, 16))
    with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
        convolution(torch.zeros(samples, 1, 16, 8, 8))


@pytest.mark.parametrize("samples", [2, 40])
def test_numbers_of_another_type(samples, packing):
    _, (model, _) = pair(packing)
    for dtype in (torch.float64, torch.int64):
        with pytest.raises(RuntimeError, match=f"not inputs of {dtype}"):
            model[7](torch.zeros(samples, 720, dtype=dtype))
    model.double()
    with pytest.raises(RuntimeError, match="float32"):
        model(torch.zeros(samples, 1, 8, 8, dtype=torch.float64))


# -- networks ----------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One linear layer that is met twice, and one weight of two."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(32, 32)
        self.one, self.other = nn.Linear(32, 32), nn.Linear(32, 32)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(self.one(self.again(self.again(x).relu())).relu())


@pytest.mark.parametrize("samples", [40, 3])
def test_shared_modules_and_weights(samples, packing):
    held = pair(packing, make=Twice)
    for model, sparsifier in held:
        take(model, sparsifier, range(7), samples=samples, shape=(32,))
    assert held[1][1].weights.packed == ["again", "one"]
    assert_alike(held)
    twin = copy.deepcopy(held[1][0])
    assert twin.one.weight is twin.other.weight
    assert torch.allclose(twin(batch(0, 40, (32,))), held[0][0](batch(0, 40, (32,))), atol=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(20, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 20, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.hidden(self.embedding(x)))


class Own(nn.Linear):
    """Might use its weight in any way."""


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.linear = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 32)

    def forward(self, x):
        return self.linear(self.attention(x, x, x)[0])


def conv(**options):
    return nn.Conv2d(16, 16, 3, **options)


STAY = {
    "tied to an embedding": (Tied, "out", "used by Embedding"),
    "a class of its own": (lambda: nn.Sequential(nn.Linear(32, 32), Own(32, 32)), "1", "used by Own"),
    "groups": (lambda: nn.Sequential(conv(), conv(groups=2)), "1", "groups or dilation"),
    "dilation": (lambda: nn.Sequential(conv(), conv(dilation=2)), "1", "groups or dilation"),
    "padding mode": (
        lambda: nn.Sequential(conv(), conv(padding=1, padding_mode="circular")),
        "1",
        "padding circular (1, 1)",
    ),
    "padding same": (lambda: nn.Sequential(conv(), conv(padding="same")), "1", "padding zeros same"),
    "transposed": (lambda: nn.Sequential(conv(), nn.ConvTranspose2d(16, 16, 3)), "1", "used by ConvTranspose2d"),
    "one dimension": (lambda: nn.Sequential(nn.Linear(16, 16), nn.Conv1d(16, 16, 3)), "1", "used by Conv1d"),
    "read past the module": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(32, 2, 64, 0.0), nn.Linear(32, 32)),
        "0.linear1",
        "used by TransformerEncoderLayer",
    ),
    "few channels": (lambda: nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 15)), "1", "fewer than 16 inputs or"),
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays_masked(name, packing):
    make, layer, reason = STAY[name]
    held = pair(packing, make=make)
    (_, theirs), (_, ours) = held
    assert layer not in ours.weights.packed
    assert ours.weights.stay_masked[layer].startswith(reason)
    assert {*ours.weights.packed, *ours.weights.stay_masked} == {la.name for la in theirs.topology.layers}
    shape = {"t": (16, 9, 9), "g": (16, 9, 9), "d": (16, 9, 9), "p": (16, 9, 9), "o": (16, 16)}.get(name[0], (32,))
    for model, sparsifier in held:
        for step in range(7):
            sparsifier.optimizer.zero_grad()
            inputs = torch.arange(60).view(3, 20) % 20 if make is Tied else batch(step, 20, shape)
            model(inputs).square().mean().backward()
            sparsifier.step()
        with torch.no_grad():
            assert model.eval()(inputs).isfinite().all()
    assert_alike(held)


def test_weights_are_averaged_in_a_plain_block(packing):
    averages = []
    for model, sparsifier in pair(packing):
        averaged = torch.optim.swa_utils.AveragedModel(model)
        for step in range(4):
            take(model, sparsifier, [step])
            with sparsifier.unpacked():
                averaged.update_parameters(model)
        averages.append(averaged.module.state_dict())
    assert_close(averages[1], averages[0])


LAYOUTS = {
    "a linear layer of columns": (lambda: nn.Linear(40, 64), (0, 1), (32, 40)),
    "a convolution by inputs": (lambda: nn.Conv2d(16, 32, 3), (0, 1), (32, 16, 6, 6)),
    "a convolution by columns": (lambda: nn.Conv2d(16, 32, 3), (2, 3), (32, 16, 6, 6)),
    "a convolution by taps": (lambda: nn.Conv2d(16, 32, 3), (0, 3), (32, 16, 6, 6)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_of_any_memory_layout(name, packing):
    make, axes, shape = LAYOUTS[name]

    def laid():
        layer = make()
        weight = layer.weight.detach()
        layer.weight = nn.Parameter(weight.transpose(*axes).contiguous().transpose(*axes))
        layer.bias = nn.Parameter(torch.randn(2 * len(layer.bias))[::2])
        assert weight.stride() != layer.weight.stride()
        return layer

    held = pair(packing, make=laid, drop="magnitude", grow="gradient")
    for model, sparsifier in held:
        take(model, sparsifier, range(7), samples=shape[0], shape=shape[1:])
    assert_alike(held)


def test_another_default_type(packing):
    held = pair(packing, drop="magnitude", grow="gradient")
    torch.set_default_dtype(torch.float64)
    try:
        for model, sparsifier in held:
            for step in range(7):
                sparsifier.optimizer.zero_grad()
                model(batch(step).float()).square().mean().backward()
                sparsifier.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_alike(held)


def test_an_optimizer_that_goes_by_shapes_is_refused(packing):
    def adafactor(model):
        return torch.optim.Adafactor(model.parameters(), 0.01)

    sparsified(seeded(), optimizer=adafactor)
    with pytest.raises(ValueError, match="Adafactor keeps averages of the rows and columns of a weight, which packed"):
        sparsified(seeded(), packing, optimizer=adafactor)


def test_attention_stays_masked(packing):
    held = pair(packing, make=Attentive)
    for model, sparsifier in held:
        for step in range(7):
            sparsifier.optimizer.zero_grad()
            model(batch(step, 4, (6, 32))).square().mean().backward()
            sparsifier.step()
    assert held[1][1].weights.packed == ["linear"]
    assert "attention.out_proj" in held[1][1].weights.stay_masked
    assert_alike(held)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant, packing):
    """Each part is passed forward twice and backward once; dense gradients are read in nested backward passes too."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            x = checkpoint(self.net[:4], x.requires_grad_(), use_reentrant=reentrant)
            return checkpoint(self.net[4:], x, use_reentrant=reentrant)

    held = pair(packing, make=Checkpointed)
    for model, sparsifier in held:
        take(model, sparsifier, range(10))
    assert_alike(held)


def test_hooks_of_modules_are_called(packing):
    held = pair(packing)
    for model, sparsifier in held:
        calls = []
        for number in (2, 7):
            model[number].register_forward_pre_hook(lambda *_, calls=calls: calls.append("before"))
            model[number].register_forward_hook(lambda _, __, y, calls=calls: calls.append("after") or y * 0.5)
            model[number].register_full_backward_hook(lambda *_, calls=calls: calls.append("back"))
        take(model, sparsifier, range(4))
        assert calls == ["before", "after", "before", "after", "back", "back"] * 4
    assert_alike(held)


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_states_are_dense(optimizer, packing):
    """Of the same names, shapes and zeros as those with masks; nothing else of the run is changed by taking them."""
    held = pair(packing, optimizer=optimizer)
    for model, sparsifier in held:
        take(model, sparsifier, range(4))
    (masked, theirs), (packed, ours) = held
    assert packed.state_dict().keys() == masked.state_dict().keys()
    for name, mask in ours.state_dict()["masks"].items():
        weight = packed.state_dict()[f"{name}.weight"]
        assert weight.shape == mask.shape
        assert not weight[~mask].any()
        assert weight[mask].count_nonzero() > 0.5 * mask.sum()
    names = [name for name, _ in packed.named_parameters()]
    for state in (ours.optimizer.state_dict(), theirs.optimizer.state_dict()):
        for number, name in enumerate(names):
            for value in state["state"][number].values():
                assert value.dim() == 0 or value.shape == masked.state_dict()[name].shape
    assert ours.weights.packed == ["2", "4", "7"]
    assert packed[7].weight.shape == (int(ours.topology.masks[3].sum()),)
    assert all(value.shape == packed[7].weight.shape for value in states_of(ours.optimizer, packed[7].weight))


def loaded_model(model, sparsifier, model_state, _):
    model.load_state_dict(model_state)


def loaded_optimizer(model, sparsifier, _, optimizer_state):
    sparsifier.optimizer.load_state_dict(optimizer_state)


def loaded_both(model, sparsifier, model_state, optimizer_state):
    sparsifier.optimizer.load_state_dict(optimizer_state)
    model.load_state_dict(model_state)


@pytest.mark.parametrize("load", [loaded_model, loaded_optimizer, loaded_both])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_earlier_states_are_loaded_alone(load, optimizer, packing):
    """Within the same masks; the next steps are those that masks take, whatever comes first."""
    held = pair(packing, optimizer=optimizer, every=4)
    for model, sparsifier in held:
        take(model, sparsifier, range(4))
        earlier = copy.deepcopy((model.state_dict(), sparsifier.optimizer.state_dict()))
        take(model, sparsifier, range(4, 6))
        load(model, sparsifier, *earlier)
        if load is not loaded_optimizer:
            assert same(model.state_dict(), earlier[0])
        if load is not loaded_model:
            assert same(sparsifier.optimizer.state_dict()["state"], earlier[1]["state"])
        with torch.no_grad():
            model(batch(7, 33)), model(batch(7, 3))
        take(model, sparsifier, range(6, 13))
    assert held[1][1].weights.packed == ["2", "4", "7"]
    assert_alike(held, atol=2e-6 if optimizer is sgd else 1e-3)


def test_weights_that_are_loaded_are_those_that_compute(packing):
    """At once, for many samples and for few."""
    (masked, _), (packed, sparsifier) = pair(packing)
    with torch.no_grad():
        before = packed(batch(0)), packed(batch(0, 3))
    state = {name: value * 2 for name, value in masked.state_dict().items()}
    for model in (masked, packed):
        model.load_state_dict(state)
    for samples in (32, 3):
        with torch.no_grad():
            assert torch.allclose(packed(batch(0, samples)), masked(batch(0, samples)), atol=1e-6)
            assert not torch.allclose(packed(batch(0, samples)), before[samples == 3], atol=1e-3)
    take(packed, sparsifier, [1])
    assert sparsifier.weights.packed


@pytest.mark.parametrize("held_by", ["data", "place"])
def test_few_samples_meet_the_present_weights(held_by, packing):
    """They are multiplied by a dense copy, also where weights change without torch's knowledge."""
    (masked, theirs), (packed, ours) = pair(packing)
    for model, sparsifier in ((masked, theirs), (packed, ours)):
        with torch.no_grad():
            model(batch(0, 3))
        with sparsifier.unpacked():
            for layer in sparsifier.topology.layers:
                if held_by == "data":
                    layer.weight.data.mul_(3)
                else:
                    layer.weight.data = layer.weight.data * 3
    with torch.no_grad():
        assert torch.allclose(packed(batch(0, 3)), masked(batch(0, 3)), rtol=1e-4)
        assert torch.allclose(packed(batch(0, 33)), masked(batch(0, 33)), rtol=1e-4)


class Plain(torch.optim.Optimizer):
    """An optimizer as many were written: it changes ``data``, of which autograd is not told."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.data.add_(parameter.grad.data, alpha=-0.5)


def test_optimizers_that_change_data(packing):
    held = pair(packing, optimizer=lambda model: Plain(model.parameters()))
    for model, sparsifier in held:
        for samples in (3, 33, 4, 5, 2):
            take(model, sparsifier, range(2), samples=samples)
            with torch.no_grad():
                model(batch(0, 1))
    assert_alike(held, atol=1e-5)


def test_weights_that_are_assigned_are_refused_as_with_masks(packing):
    """A state may replace parameters instead of filling them: the optimizer then trains nothing that computes."""
    for model, sparsifier in pair(packing):
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        with pytest.raises(RuntimeError, match="computes with another weight than the one that is held sparse"):
            sparsifier.verify()


@pytest.mark.parametrize("samples", [3, 33])
def test_a_weight_that_is_replaced_is_not_multiplied_packed(samples, packing):
    _, (model, _) = pair(packing)
    model[7].weight = nn.Parameter(torch.zeros(32, 720))
    with pytest.raises(RuntimeError, match="another weight"):
        model(batch(0, samples))


def test_copies_are_plain_and_apart(packing):
    _, (packed, sparsifier) = pair(packing)
    twin = copy.deepcopy(packed)
    assert [type(module) for module in twin] == [type(module) for module in net()]
    assert same(twin.state_dict(), packed.state_dict())
    for samples in (33, 3):
        assert torch.allclose(twin(batch(0, samples)), packed(batch(0, samples)), atol=1e-6)
    before = copy.deepcopy(packed.state_dict())
    take(twin, sparsified(twin, density=0.5, init="magnitude"), range(4))
    assert same(packed.state_dict(), before)
    take(packed, sparsifier, range(4))
    assert not same(packed.state_dict(), before)
    assert pickle.loads(pickle.dumps(twin))
    assert "weights" in repr(packed)
    assert "weights" not in repr(twin)


def test_packed_modules_are_not_written_as_objects(packing):
    _, (model, sparsifier) = pair(packing)
    for write in (pickle.dumps, lambda it: torch.save(it, io.BytesIO()), lambda it: copy.copy(it[7])):
        with pytest.raises(TypeError, match=r"model\.state_dict"):
            write(model)
    with pytest.raises(TypeError, match="not copied"):
        copy.deepcopy(sparsifier)
    torch.save(model.state_dict(), io.BytesIO())


def test_released(packing):
    """Plain weights, optimizer and modules go on; another Sparsifier may take them."""
    held = pair(packing, optimizer=adam)
    for model, sparsifier in held:
        take(model, sparsifier, range(4))
        sparsifier.release()
    (masked, _), (packed, ours) = held
    assert [type(module) for module in packed] == [type(module) for module in masked]
    for model, sparsifier in held:
        sparsifier.optimizer.zero_grad()
        loss_of(model, 5).backward()
        sparsifier.optimizer.step()
    assert_close(packed.state_dict(), masked.state_dict(), atol=5e-4)
    assert_close(ours.optimizer.state_dict(), held[0][1].optimizer.state_dict(), atol=5e-4)
    assert packed[7].weight.count_nonzero() > ours.topology.masks[3].sum()  # nobody masks gradients any more
    again = sparsified(packed, packing, init="magnitude")
    take(packed, again, range(4))
    assert again.weights.packed


def test_a_sparsifier_that_is_gone(packing):
    """The network computes as it did; what would need the Sparsifier says so."""
    _, (model, sparsifier) = pair(packing)
    take(model, sparsifier, range(4))
    optimizer, state = sparsifier.optimizer, copy.deepcopy(model.state_dict())
    outputs = [model(batch(0, samples)) for samples in (33, 3)]
    del sparsifier
    gc.collect()
    assert [torch.equal(model(batch(0, len(found))), found) for found in outputs] == [True, True]
    assert same(model.state_dict(), state)
    assert same(copy.deepcopy(model).state_dict(), state)
    with pytest.raises(RuntimeError, match="the Sparsifier that packed this layer is gone"):
        model.load_state_dict(state)
    optimizer.zero_grad()
    loss_of(model, 0).backward()
    optimizer.step()


@pytest.mark.parametrize("load", [False, True])
def test_an_error_within_a_plain_block(load, packing):
    _, (model, sparsifier) = pair(packing)
    take(model, sparsifier, range(4))
    state = copy.deepcopy(model.state_dict())

    def fail():
        with sparsifier.unpacked(), sparsifier.unpacked():
            assert model[7].weight.shape == (32, 720)
            assert sparsifier.weights.packed == []
            if load:
                model.load_state_dict(state)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sparsifier.weights.packed == ["2", "4", "7"]
    assert same(model.state_dict(), state)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_without_gradients_nothing_is_kept(packing):
    _, (model, sparsifier) = pair(packing)
    pool = next(iter(sparsifier.weights._able.values()))._pool
    with torch.no_grad():
        model(batch(0))
    free = pool.size
    assert free > 0
    for context in (torch.no_grad, torch.inference_mode):
        for _ in range(3):
            with context():
                outputs = model(batch(0))
            assert not outputs.requires_grad
            assert pool.size == free


@pytest.mark.parametrize("samples", [3, 33])
def test_inference_before_training(samples, packing):
    """Tensors of inference mode may not take part in training: none is left where training meets it."""
    held = pair(packing)
    for model, sparsifier in held:
        for step in range(7):
            with torch.inference_mode():
                model(batch(step, samples))
            take(model, sparsifier, [step], samples=samples)
    assert_alike(held)


def test_buffers_come_back(packing):
    """Training holds as many as one step needs, however many there are; also where losses are never passed back."""
    _, (model, sparsifier) = pair(packing, grow="random")
    pool = next(iter(sparsifier.weights._able.values()))._pool
    take(model, sparsifier, range(4))
    free = pool.size
    take(model, sparsifier, range(4, 8))
    assert pool.size == free


def test_second_derivatives(packing):
    """Through kernels there are none; few samples meet a dense weight, of which torch has them."""
    (masked, theirs), (packed, ours) = pair(packing)
    for model, samples in ((packed, 33), (masked, 3), (packed, 3)):
        inputs = batch(0, samples).requires_grad_()
        if samples == 33:
            with pytest.raises(RuntimeError, match="packed layers have no second derivatives"):
                torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
        else:
            (gradient,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
            gradient.sum().backward()
    for sparsifier in (theirs, ours):
        sparsifier.optimizer.step()
    wanted = masked[7].weight.detach() * theirs.topology.masks[3]
    assert torch.allclose(packed.state_dict()["7.weight"], wanted, atol=1e-6)


def test_a_second_backward_pass_is_refused(packing):
    _, (model, _) = pair(packing)
    loss = loss_of(model, 0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Pass forward again, or compute with masks"):
        loss.backward()


def test_gradients_of_inputs_alone(packing):
    """With frozen biases and values, as an adversary would ask for them."""
    found = []
    for model, _ in pair(packing):
        inputs = batch(0, 33).requires_grad_()
        (gradient,) = torch.autograd.grad(model(inputs).square().sum(), inputs)
        found.append(gradient)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_frozen_later_is_told_as_with_masks(packing):
    for model, sparsifier in pair(packing):
        take(model, sparsifier, range(2))
        model[7].weight.requires_grad_(False)
        with pytest.raises(RuntimeError, match="layers 7 have been frozen"):
            take(model, sparsifier, range(2))


def test_learned_masks_are_not_packed(packing):
    model = net()
    with pytest.raises(ValueError, match="does not go with learned masks"):
        Sparsifier(model, None, density=0.5, reparametrize=partial(edge_popup, density=0.2), compute=packing)
    with pytest.raises(ValueError, match=r"compute=pack.* did you mean 'packed'"):
        Sparsifier(model, sgd(model), density=0.1, compute="pack")
