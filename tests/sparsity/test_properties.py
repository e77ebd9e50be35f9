"""Any layers, densities, fractions and parts, with ties and gradients that are all zero: the promises of an update."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.density_schedule import cubic
from tests.states import states_of

LAYERS = st.lists(
    st.one_of(
        st.builds(nn.Linear, st.integers(1, 12), st.integers(1, 9)),
        st.builds(
            lambda i, o, k, g: nn.Conv2d(i * g, o * g, k, groups=g),
            st.integers(1, 5),
            st.integers(1, 4),
            st.integers(1, 3),
            st.sampled_from([1, 1, 2]),
        ),
    ),
    min_size=2,
    max_size=5,
)
VALUES = st.sampled_from(["distinct", "ties", "zero"])


def numbers(tensor, kind, generator):
    found = torch.randn(tensor.shape, generator=generator)
    return {"distinct": found, "ties": found.round(), "zero": torch.zeros_like(found)}[kind]


@settings(max_examples=150)
@given(
    layers=LAYERS,
    density=st.floats(0.05, 0.95),
    fraction=st.floats(0.01, 1.0),
    distribution=st.sampled_from(["uniform", "er", "erk", "magnitude"]),
    init=st.sampled_from(["random", "magnitude"]),
    pattern=st.sampled_from(["unstructured", "unstructured", "constant_fan_in"]),
    drop=st.sampled_from(["magnitude", "set", "taylor", "random"]),
    grow=st.sampled_from(["gradient", "momentum", "momentum_neuron", "random", "random_unexplored"]),
    redistribute=st.sampled_from([None, None, "magnitude", "momentum", "nonzeros"]),
    ramp=st.booleans(),
    pools=st.tuples(st.sampled_from(["layer", "global"]), st.sampled_from(["layer", "global"])),
    plan=st.builds(
        dict,
        order=st.sampled_from(["after_step", "replaces_step"]),
        regrow=st.booleans(),
        grown_weights=st.sampled_from(["zero", "initial"]),
        returning_weights=st.sampled_from(["keep", "reset"]),
    ).map(lambda plan: plan if plan["regrow"] else {**plan, "returning_weights": "keep"}),
    weights=VALUES,
    gradients=VALUES,
    adam=st.booleans(),
)
def test_promises(
    layers,
    density,
    fraction,
    distribution,
    init,
    pattern,
    drop,
    grow,
    redistribute,
    ramp,
    pools,
    plan,
    weights,
    gradients,
    adam,
):
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleList(layers)
    for layer in layers:
        layer.weight.data = numbers(layer.weight, weights, generator)
    size = sum(layer.weight.numel() for layer in layers)
    if not len(layers) <= round(density * size):
        return
    structured = pattern != "unstructured"
    plan = UpdatePlan(every=2, total_steps=12, **plan)
    final = max(len(layers), round(density * size) // 2) / size
    falls = ramp and not structured and round(final * size) < round(density * size)
    parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, 0.1) if adam else torch.optim.SGD(parameters, 0.1, momentum=0.9)
    try:
        sparsifier = Sparsifier(
            model,
            optimizer,
            density=density,
            distribution=distribution,
            init=init,
            pattern=pattern,
            drop=drop,
            grow=grow,
            redistribute=None if structured else redistribute,
            plan=plan,
            drop_fraction=fraction,
            drop_pool=pools[0],
            prune_pool=pools[1] if falls else "global",
            density_curve=cubic(plan, final, initial=density, end=0.5) if falls else None,
        )
    except ValueError as error:
        if falls or "no layer has an inactive weight" not in str(error):
            raise
        return  # small layers have been rounded up to all their weights
    topology = sparsifier.topology
    total, counts = topology.active, [report.active for report in topology.reports]
    assert structured or total == round(density * size)
    explored = [mask.clone() for mask in topology.masks]
    for step in range(1, 11):
        before = [mask.clone() for mask in topology.masks]
        for parameter in model.parameters():
            parameter.grad = numbers(parameter, gradients, generator)
        assert sparsifier.step() == (step % 2 == 0)
        if falls:
            assert (
                topology.active == round(sparsifier.topology_update.density_curve(step - step % 2) * size) or step == 1
            )
        elif redistribute is not None and not structured:
            assert topology.active == total
        elif not structured:
            assert [report.active for report in topology.reports] == counts
        for i, (layer, report, mask) in enumerate(zip(topology.layers, topology.reports, topology.masks, strict=True)):
            explored[i] |= mask
            assert report.active == mask.sum() >= 1
            assert report.explored == explored[i].sum() == topology.explored[i].sum()
            if step % 2 == 0:
                assert report.grown == (mask & ~before[i]).sum()
                assert report.dropped == (before[i] & ~mask).sum()
            if structured:
                assert mask.all() or topology.patterns[i].allows(mask)
            assert torch.count_nonzero(layer.weight[~mask]) == 0
            for state in states_of(optimizer, layer.weight):
                assert torch.count_nonzero(state[~mask]) == 0
                if step % 2 == 0:
                    assert torch.count_nonzero(state[mask & ~before[i]]) == 0
