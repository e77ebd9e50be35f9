"""Packed weights in several processes: all alike, and as masks make them, whichever way gradients are summed."""

import pytest

from tests.processes import call_together
from tests.sparsity.test_packed_methods import AGENT, SGD, TICKETS, assert_close
from tests.states import same
from tests.training import packed_ranks

SHORT = (*SGD, "hardware.processes=2", "schedule.epochs=4", "schedule.batch_size=96")
RANKS = {"strict": "hardware.determinism=strict", "fast": "hardware.determinism=fast"}
METHODS = {
    "rigl": (),
    "set": (),
    "granet": ("sparsity.density_schedule.initial=0.9",),
    "gmp": (),
    "snfs": (),
    "rigl with agent": AGENT[:2],
    "rigl_itop in cycles": TICKETS,
    "gmp accumulated": ("schedule.accumulate=2",),
}


@pytest.mark.parametrize("determinism", RANKS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("rigl", "granet") else pytest.mark.slow) for name in METHODS]
)
def test_two_processes(name, determinism, root, tmp_path):
    """GraNet and GMP change the number of values, and which layers are packed, from update to update."""
    method, options = name.split()[0], (*SHORT, RANKS[determinism], *METHODS[name])
    one, two = call_together(packed_ranks.train, str(root), method, "packed", *options, cwd=tmp_path)
    assert same(one, two)
    masked, _ = call_together(packed_ranks.train, str(root), method, "masked", *options, cwd=tmp_path)
    assert any(one["packed"])  # within what a procedure does between steps none is
    assert one["counts"] == masked["counts"]
    assert_close(one["state"], masked["state"], rtol=3e-3, atol=1e-5)
    if method in ("granet", "gmp"):
        assert one["packed"][0] == []
        assert len(set(map(tuple, one["counts"]))) > 2
