"""What GPUs do, done on a CPU: selection in all layers at once."""

from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dst.run.build import build
from dst.sparsity import segments, select
from dst.sparsity.bracket import selected
from dst.sparsity.pattern import Asked, Budget, blocks_together, updated
from dst.sparsity.pattern.constant_fan_in import constant_fan_in
from dst.sparsity.pattern.n_m import n_m
from dst.sparsity.pattern.unstructured import Unstructured
from tests.sparsity import test_catalogue as catalogue

ALIKE = {"dst", "rigl", "set_itop"}
"""Methods that change masks as others do that are tested here."""
INF = float("inf")
VALUES = [0.0, -0.0, 1.0, 1.0, -1.0, 2.5, -2.5, 1e-45, -1e-45, 3e38, INF, -INF]


@contextmanager
def as_on_a_device(columns=7):
    """Take the way of GPUs, in rows so short that layers have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_HOST", "none")
        patch.setattr(select, "_FEW", 0)
        patch.setattr(segments, "COLUMNS", columns)
        forget_tables()
        yield patch
    forget_tables()


def forget_tables():
    segments.segments_of.cache_clear()
    blocks_together.tables_of.cache_clear()


@pytest.fixture
def on_device():
    with as_on_a_device() as patch:
        yield patch


layers = st.lists(
    st.lists(st.tuples(st.sampled_from(VALUES), st.booleans(), st.sampled_from(VALUES)), min_size=1, max_size=40),
    min_size=1,
    max_size=6,
)


def tensors(drawn, dtype=torch.float32):
    """Return scores, eligible places, and other scores, of each layer."""
    columns = [[list(column) for column in zip(*layer, strict=True)] for layer in drawn]
    scores, among, others = (
        [torch.tensor(column[i], dtype=kind) for column in columns] for i, kind in enumerate((dtype, torch.bool, dtype))
    )
    return scores, among, others


def of_cpu(scores, k, among, largest):
    return selected([scores], k, [among], largest)[0] if k else torch.zeros_like(among)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("largest", [True, False])
def test_all_layers_at_once_are_the_layers_one_by_one(on_device, largest, dtype):
    @given(layers, st.data())
    @settings(max_examples=40)
    def check(drawn, data):
        scores, among, _ = tensors(drawn, dtype)
        ks = [data.draw(st.sampled_from([0, int(a.sum()), int(a.sum()) // 2, int(a.sum()) // 3])) for a in among]
        each = select.each_top_k if largest else select.each_bottom_k
        found = each(scores, ks, among)
        expected = [of_cpu(*layer, largest) for layer in zip(scores, ks, among, strict=True)]
        assert all(map(torch.equal, found, expected))

    check()


def test_of_numbers_that_are_none_the_device_makes_what_the_cpu_does(on_device):
    """As many are missing in the end, which a check of the counts then tells."""
    for values in ([1.0, float("nan"), 1.0, 0.0], [float("nan"), 2.0, 1.0, 3.0], [-float("nan"), 2.0, 1.0, 3.0]):
        scores, among = torch.tensor(values), torch.ones(4, dtype=torch.bool)
        for k in (1, 2, 3):
            (found,) = select.each_top_k([scores], [k], [among])
            assert torch.equal(found, of_cpu(scores, k, among, True))
        (found,) = select.each_bottom_k([scores], [2], [among])
        assert torch.equal(found, of_cpu(scores, 2, among, False))


@given(layers, st.booleans(), st.data())
def test_an_exchange_of_all_layers_is_that_of_each(drawn, regrow, data):
    scores, masks, others = tensors(drawn)
    drops = [data.draw(st.integers(0, int(mask.sum()))) for mask in masks]
    free = [int((~mask).sum()) for mask in masks]
    grows = [data.draw(st.integers(0, n + (drop if regrow else 0))) for n, drop in zip(free, drops, strict=True)]
    expected = select.exchanged((scores, drops), (others, grows), masks, regrow=regrow)
    with as_on_a_device():
        held = [int(mask.sum()) for mask in masks] if data.draw(st.booleans()) else None
        found = select.exchanged((scores, drops), (others, grows), masks, regrow=regrow, held=held)
    assert all(torch.equal(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True))
    kept, after = found[0]
    assert after.untyped_storage().nbytes() == after.numel()  # a checkpoint holds no more than that
    assert kept.data_ptr() != after.data_ptr()


@given(layers, st.data())
def test_pooled_selection_on_a_device_is_that_on_a_cpu(drawn, data):
    scores, among, _ = tensors(drawn)
    for mask in among:
        mask[0] = True
    k = data.draw(st.integers(len(scores), sum(int(mask.sum()) for mask in among)))
    expected = select.pooled_top_k(scores, k, among)
    found = select._pooled_on_device(scores, k, among)
    assert all(map(torch.equal, found, expected))


def test_large_layers_of_uneven_sizes(on_device):
    """With rows as long as they are, in two batches; with ties, and in another memory layout."""
    on_device.setattr(segments, "COLUMNS", 4_096)
    on_device.setattr(segments, "_MOST", 200_000)
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 3, 3), (300, 500), (4096,), (1,), (64, 64, 3, 3), (4097,), (700, 300)]
    scores = [torch.randn(shape, generator=generator) for shape in shapes]
    scores[1] = (scores[1] * 4).round()
    scores[4] = scores[4].contiguous(memory_format=torch.channels_last)
    among = [torch.rand(score.shape, generator=generator) < 0.5 for score in scores]
    ks = [int(mask.sum()) // 3 for mask in among]
    assert len([*segments.batches([score.numel() for score in scores])]) > 1
    for each, largest in ((select.each_top_k, True), (select.each_bottom_k, False)):
        for mask, score, k, where in zip(each(scores, ks, among), scores, ks, among, strict=True):
            assert torch.equal(mask, of_cpu(score.flatten(), k, where.flatten(), largest).view(where.shape))
    assert select.count_true(among) == [int(mask.sum()) for mask in among]


# -- updates -----------------------------------------------------------------------------------------------------------


def moving(method, *options):
    """Return the sparsifier of a method on ResNet-20, updated at steps 2 and 4, and what gives it gradients."""
    training = build(catalogue.composed(method, "resnet20", options)).training
    generator = torch.Generator().manual_seed(0)

    def give_gradients():
        for parameter in training.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)

    return training.sparsifier, give_gradients


class Watch(TorchDispatchMode):
    """Counts what would be kernels on a GPU, and notes where the host waits for one."""

    FREE = frozenset(
        {"view", "_unsafe_view", "alias", "detach", "split_with_sizes", "slice", "unsqueeze", "squeeze", "expand"}
        | {"select", "empty", "lift_fresh", "promote_types"}
    )
    WAITS = frozenset({"_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero"})

    def __init__(self):
        super().__init__()
        self.kernels, self.waits = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name not in self.FREE:
            self.kernels[name] += 1
        by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITS or by_mask:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        watch = self

        class Reads(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
                    watch.waits.append(func.__name__)
                return func(*args, **(kwargs or {}))

        self._reads = Reads()
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *arguments):
        super().__exit__(*arguments)
        self._reads.__exit__(*arguments)


def moved(method, options, updates=2):
    """Return the topology after so many updates, and where the first of them waited for the device."""
    sparsifier, give_gradients = moving(method, *options)
    watches = []
    for number in range(1, 2 * updates + 1):
        give_gradients()
        with Watch() as watch:
            assert sparsifier.step(gradients_are_finite=True) is (number % 2 == 0)
        watches.append(watch)
    return sparsifier.topology, watches[1].waits


NOT_GIVEN = ("name=none", "initial=null", "floor=null", "horizon=null")
NO_FRACTION = " ".join(f"sparsity.drop_fraction.{key}" for key in NOT_GIVEN)
COUNTS = ["tolist"]
"""Of all masks, at the end of every update."""
GROUPING = ["_local_scalar_dense"] * 2
"""Whether rows and groups are matched, every four rounds."""
UPDATING = {
    "set": COUNTS,
    "rigl_itop": COUNTS,
    "gmp_uniform": COUNTS,
    "granet_uniform": COUNTS,
    "gmp": COUNTS * 2,  # what global pruning leaves of each layer
    "granet": COUNTS * 2,
    "snfs": COUNTS * 2,  # the statistics that freed weights are shared by
    "nm_rigl": COUNTS * 2,  # whether the masks are as the pattern has them
    "srigl": COUNTS * 3,  # and how many units live
    "rigl sparsity.update.regrow=false": COUNTS,
    "srigl sparsity.update.regrow=false": COUNTS * 3,
    "srigl sparsity.pattern.ablation=0.9": COUNTS * 3,
    "rigl sparsity.drop.pool=global": COUNTS * 2,  # what a global drop leaves of each layer
    f"rigl sparsity.drop.name=threshold sparsity.drop.quantile=0.2 {NO_FRACTION}": COUNTS * 2,  # how many leave
    "dsb": [*GROUPING, *COUNTS * 3],  # what groups lack and whether masks are in them, before and after
    "dsb sparsity.pattern.regroup_every_updates=0": COUNTS * 3,
    "dsb sparsity.pattern.column_unit=16 sparsity.update.regrow=false": [*GROUPING, *COUNTS * 3],
    "dsb sparsity.pattern.min_units=2 sparsity.density=0.06": [*GROUPING[:1], *COUNTS * 3],
}
"""Methods that change masks, and where an update waits for the device."""


@pytest.mark.parametrize("case", UPDATING)
def test_updates_of_every_method_are_those_of_a_cpu(case):
    method, *options = case.split()
    expected, _ = moved(method, options)
    with as_on_a_device(columns=512):
        found, waits = moved(method, options)
    assert found.reports == expected.reports
    assert found.counts == expected.counts
    for kind in ("masks", "explored"):
        assert all(map(torch.equal, getattr(found, kind), getattr(expected, kind)))
    assert all(mask.untyped_storage().nbytes() == mask.numel() for mask in found.masks)
    assert waits == UPDATING[case]


def test_these_are_all_methods_that_change_masks():
    files = (catalogue.CONF / "sparsity").glob("*.yaml")
    updating = {path.stem for path in files if "\nupdate:" in path.read_text()}
    assert updating == {case for case in UPDATING if " " not in case} | ALIKE


@pytest.mark.parametrize("pattern", [Unstructured, partial(n_m, n=1, m=2), partial(constant_fan_in, ablation=0.3)])
def test_more_layers_are_no_more_kernels(pattern):
    """But for what shapes rows, and gives masks memory of their own."""
    numbers = []
    selecting = {"sum", "index_select", "ge", "add", "add_", "topk", "cumsum", "gt", "eq", "masked_fill_"}
    with as_on_a_device():
        for layers in (5, 20):
            generator = torch.Generator().manual_seed(0)
            asked = []
            for _ in range(layers):
                own, (drop, grow) = pattern(), torch.rand(2, 6, 8, generator=generator)
                mask = own.initial(torch.rand(6, 8, generator=generator), 24)
                asked.append(Asked(own, drop, grow, mask, Budget(drop=6, grow=6, count=24, active=24)))
            updated(asked)  # tables are made once
            with Watch() as watch:
                moved = updated(asked)
                select.count_true([mask for _, mask in moved])
            numbers.append(watch.kernels)
    few, many = numbers
    more = {name: many[name] - number for name, number in few.items() if many[name] != number}
    if pattern is Unstructured:
        assert more == {}
    elif "m" in pattern.keywords:
        assert not set(more) & selecting
    else:  # the salient weights of each unit, of each layer
        assert more["sum"] == more["ge"] == 15
        assert not set(more) & (selecting - {"sum", "ge"})
