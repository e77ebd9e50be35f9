"""Networks converted in place: what is fused, that nothing else changes, and what torch still computes."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from dst.kernels.fused import Fused, FusedBatchNorm2d, FusedDropout, fuse
from dst.models import alexnet, lenet, mlp, resnet_cifar, resnet_imagenet, vgg, vit, wrn

IMAGE = (3, 32, 32)
MODELS = {
    "alexnet_s": (alexnet.alexnet_s, Fused(norms=7, rectified=7)),
    "lenet_5": (lenet.lenet_5, Fused()),
    "mlp": (partial(mlp.mlp, hidden=(20, 30), batch_norm=True), Fused(norms=2)),  # its norms follow the ReLU
    "resnet18_imagenet": (resnet_imagenet.resnet18_imagenet, Fused(norms=20, rectified=17, added=8)),
    "resnet18 with a pooled stem": (
        partial(resnet_cifar.resnet18, stem_pool=True),
        Fused(norms=20, rectified=17, added=8),
    ),
    "resnet20": (resnet_cifar.resnet20, Fused(norms=21, rectified=19, added=9)),
    "resnet50": (resnet_imagenet.resnet50, Fused(norms=53, rectified=49, added=16)),
    "resnet50_cifar": (resnet_cifar.resnet50_cifar, Fused(norms=53, rectified=49, added=16)),
    "vgg_c": (vgg.vgg_c, Fused(norms=15, rectified=13)),
    "vgg19": (vgg.vgg19, Fused(norms=16, rectified=16)),
    "vit_tiny": (vit.vit_tiny, Fused()),
    "wrn_16_8": (partial(wrn.wrn_16_8, dropout=0.0), Fused(norms=13, rectified=13)),
    "wrn_22_2": (wrn.wrn_22_2, Fused(norms=19, rectified=19, dropouts=9)),
}


def passed(model, x):
    """Return the outcome, the gradients of all parameters and all buffers, after a pass that begins from a seed."""
    torch.manual_seed(7)
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_stays_what_it_is(name, folder):
    """In float64 torch computes all of it, in the order that was found: not a bit may differ."""
    make, expected = MODELS[name]
    torch.manual_seed(0)
    plain = make(IMAGE, 10)
    fused = copy.deepcopy(plain)
    assert fuse(fused, folder) == expected
    assert bool(expected) == (name not in ("lenet_5", "vit_tiny"))
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in plain.named_modules()]
    pairs = zip(fused.modules(), plain.modules(), strict=True)
    assert all(isinstance(one, type(other)) for one, other in pairs)
    if name in ("resnet50", "resnet50_cifar", "wrn_16_8"):  # as their smaller sisters
        return
    plain, fused = plain.double(), fused.double()
    x = torch.randn(3, *IMAGE, dtype=torch.float64)
    assert all(map(torch.equal, passed(fused, x), passed(plain, x)))
    assert torch.equal(fused.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("name", ["resnet18 with a pooled stem", "resnet20", "vgg_c", "wrn_22_2"])
def test_a_network_by_kernels_is_that_of_torch(name, folder):
    """Measured against float64: about as far from it as torch is with channels last, which others of its kernels do."""
    make, _ = MODELS[name]
    torch.manual_seed(0)
    plain = make(IMAGE, 10, **({"dropout": 0.0} if name.startswith("wrn") else {}))
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fuse(fused, folder)
    x = torch.randn(16, *IMAGE)
    theirs = copy.deepcopy(plain).to(memory_format=torch.channels_last)(x)
    y, ours, _ = exact(x.double()), fused(x), plain(x)
    assert (ours - y).norm() < 1.5 * (theirs - y).norm()
    for found, expected in zip(fused.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.state_dict()[_last(fused)], plain.state_dict()[_last(plain)])


def _last(model):
    return [name for name in model.state_dict() if name.endswith("num_batches_tracked")][-1]


# -- what follows what -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two norms, and a forward pass to be told."""

    def __init__(self, forward):
        super().__init__()
        self.one, self.two, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 1)
        self.told = forward

    def forward(self, x):
        return self.told(self, x)


def changed_between(net, x):
    y = net.one(x)
    x.mul_(2)
    return torch.relu(y + x)


def iterated(net, x):
    y = net.conv(x)
    for i in range(y.shape[1]):
        y = y + i * torch.relu(net.one(y))
    return y


FORWARDS = {
    "function": (lambda net, x: F.relu(net.one(x)), (1, 0)),
    "in place": (lambda net, x: net.relu(net.one(x)) + net.relu(net.two(x)), (2, 0)),
    "added": (lambda net, x: torch.relu(x + net.one(net.conv(x))), (1, 1)),
    "two norms": (lambda net, x: torch.relu(net.one(net.conv(x)) + net.two(net.conv(x))), (1, 1)),
    "shared": (lambda net, x: torch.relu(net.one(torch.relu(net.one(x)))), (2, 0)),
    "broadcast": (lambda net, x: torch.relu(net.one(net.conv(x)) + x.mean((2, 3), keepdim=True)), (1, 1)),
    "read twice": (lambda net, x: (y := net.one(x)) + torch.relu(y), (0, 0)),
    "sum read twice": (lambda net, x: (y := net.one(net.conv(x)) + x) * torch.relu(y), (0, 0)),
    "scaled": (lambda net, x: torch.relu(torch.add(net.one(net.conv(x)), x, alpha=2)), (0, 0)),
    "a number": (lambda net, x: torch.relu(net.one(net.conv(x)) + 1), (0, 0)),
    "subtracted": (lambda net, x: torch.relu(net.one(net.conv(x)) - x), (0, 0)),
    "changed between": (changed_between, (0, 0)),
    "by mode": (lambda net, x: torch.relu(net.one(x)) if net.training else net.one(x), (0, 0)),
    "iterated": (iterated, (0, 0)),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_only_what_follows_a_norm_and_nothing_else_reads_is_joined(name, folder):
    forward, joined = FORWARDS[name]
    torch.manual_seed(0)
    plain = Net(forward)
    fused = copy.deepcopy(plain)
    found = fuse(fused, folder)
    assert (found.norms, (found.rectified, found.added)) == (2, joined)
    x = torch.randn(5, 4, 3, 3)
    for dtype, close in ((torch.float64, {"rtol": 0, "atol": 0}), (torch.float32, {"rtol": 1e-4, "atol": 1e-5})):
        plain, fused, x = plain.to(dtype), fused.to(dtype), x.to(dtype)
        for mode in (True, False):
            y, expected = (model.train(mode)(x.clone()) for model in (fused, plain))
            torch.testing.assert_close(y, expected, **close)
            for one, other in zip(fused.buffers(), plain.buffers(), strict=True):
                torch.testing.assert_close(one, other, **close)


# -- norms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"momentum": 0.3, "eps": 1e-3}])
@pytest.mark.parametrize("more", [{}, {"track_running_stats": False}, {"affine": False}])
@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (7, 4)])
def test_statistics_run_as_those_of_torch(options, more, shape, folder):
    make = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    plain = nn.Sequential(make(4, **options, **more))
    fused = copy.deepcopy(plain)
    assert fuse(fused, folder).norms == ("affine" not in more)
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 2
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
        assert fused.state_dict().keys() == plain.state_dict().keys()
        for one, other in zip(fused.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1), (5, 3), (5, 3, 2, 2), (5, 4, 2), (5, 4, 2, 2, 2)])
def test_what_torch_refuses_is_refused_and_what_no_kernel_takes_is_torch_s(shape, folder):
    for make in (nn.BatchNorm1d, nn.BatchNorm2d):
        plain = nn.Sequential(make(4))
        fused = copy.deepcopy(plain)
        fuse(fused, folder)
        try:
            expected = plain(torch.ones(shape))
        except (ValueError, RuntimeError) as error:
            with pytest.raises(type(error)):
                fused(torch.ones(shape))
        else:
            assert torch.equal(fused(torch.ones(shape)), expected)


def test_what_is_not_a_number_is_not_hidden(folder):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    fuse(model, folder)
    x = torch.randn(4, 2, 3, 3)
    x[1, 0, 0, 0] = torch.inf
    y = model(x)
    assert y[:, 0].isnan().all()
    assert not y[:, 1].isnan().any()


def test_under_autocast_torch_computes(folder):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    fused = copy.deepcopy(plain)
    fuse(fused, folder)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = (model(torch.ones(2, 3, 5, 5)) for model in (fused, plain))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


def test_only_torch_s_own_classes_are_converted(folder):
    class Other(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    assert fuse(nn.Sequential(Other(4), nn.ReLU(), nn.Dropout(0.0), nn.Dropout1d(0.5)), folder) == Fused()


# -- passes ------------------------------------------------------------------------------------------------------------


def dropping(folder):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3))
    fuse(model, folder)
    assert isinstance(model[3], FusedDropout)
    return model


def gradients(model, x, through, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    through(model, x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_dropout_repeats_itself_by_torch_s_seed_alone(folder):
    model, x = dropping(folder), torch.randn(8, 6)
    one, again, other = (gradients(model, x, lambda model, x: model(x), seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[-2], other[-2])
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_for_the_backward_pass_is_the_same(reentrant, folder):
    model, x = dropping(folder), torch.randn(8, 6, requires_grad=True)
    kept = gradients(model, x, lambda model, x: model(x))
    again = gradients(model, x, lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(map(torch.equal, kept, again))


@pytest.mark.parametrize("model", [nn.BatchNorm1d(6), nn.Dropout(0.5)])
def test_second_derivatives_are_refused(model, folder):
    model = nn.Sequential(model)
    fuse(model, folder)
    x = torch.randn(5, 6, requires_grad=True)
    y = model(x).square().sum()
    with pytest.raises(RuntimeError, match="fused batch norm and dropout have no second derivatives: take these of"):
        torch.autograd.grad(y, x, create_graph=True)


def test_a_copy_is_fused_too_and_is_another_network(folder):
    model = dropping(folder)
    x = torch.randn(8, 6)
    twin = copy.deepcopy(model)
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    assert all(map(torch.equal, gradients(twin, x, lambda m, x: m(x)), gradients(model, x, lambda m, x: m(x))))
    twin(x)
    assert not torch.equal(twin[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("name", ["resnet20", "wrn_22_2", "vgg_c"])
def test_no_more_is_kept_for_the_backward_pass_than_by_torch(name, folder):
    plain = MODELS[name][0](IMAGE, 10).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse(fused, folder)
    x = torch.randn(8, *IMAGE).contiguous(memory_format=torch.channels_last)
    kept = []
    for model in (fused, plain):
        held = {}
        with saved_tensors_hooks(lambda t, held=held: held.setdefault(t.data_ptr(), t), lambda t: t):
            y = model(x)
        kept.append(sum(t.numel() * t.element_size() for t in held.values()))
        del y
    assert kept[0] <= kept[1]


def test_a_fused_norm_still_is_one(folder):
    model = nn.Sequential(nn.BatchNorm2d(4))
    fuse(model, folder)
    assert type(model[0]) is FusedBatchNorm2d
    assert isinstance(model[0], nn.BatchNorm2d)
