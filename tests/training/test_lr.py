import pytest

from dst.training.lr import LRPlan, constant, cosine, multistep


def test_cosine_without_and_with_warmup():
    curve = cosine(LRPlan(peak=0.1, total_steps=100))
    assert [curve(0), curve(50), curve(100)] == pytest.approx([0.1, 0.05, 0.0])
    warmed = cosine(LRPlan(peak=0.1, total_steps=110, warmup_steps=10), floor=0.02)
    assert [warmed(0), warmed(4), warmed(9), warmed(10)] == pytest.approx([0.01, 0.05, 0.1, 0.1])
    assert [warmed(60), warmed(110)] == pytest.approx([0.06, 0.02])


def test_multistep_drops_at_fractions_of_training():
    """ITOP: 250 epochs of 352 steps, x 0.1 at 1/2 and 3/4."""
    curve = multistep(LRPlan(peak=0.1, total_steps=88_000), milestones=[0.5, 0.75], gamma=0.1)
    assert [curve(43_999), curve(44_000)] == pytest.approx([0.1, 0.01])
    assert [curve(65_999), curve(66_000), curve(87_999)] == pytest.approx([0.01, 0.001, 0.001])


def test_multiplier_scales_the_milestones():
    curve = multistep(LRPlan(peak=0.1, total_steps=2 * 88_000), milestones=[0.5], gamma=0.1)
    assert [curve(87_999), curve(88_000)] == pytest.approx([0.1, 0.01])


def test_constant():
    curve = constant(LRPlan(peak=0.3, total_steps=10, warmup_steps=2))
    assert [curve(0), curve(1), curve(9)] == pytest.approx([0.15, 0.3, 0.3])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"warmup_steps": 10}, r"warmup_steps=10: must be in \[0, total_steps=10\)"),
        ({"warmup_steps": -3}, r"warmup_steps=-3: must be in \[0, total_steps=10\)"),
        ({"total_steps": 0}, "total_steps=0: must be >= 1"),
        ({"total_steps": -5, "warmup_steps": -3}, "total_steps=-5: must be >= 1"),
    ],
)
def test_impossible_lengths(wrong, told):
    with pytest.raises(ValueError, match=told):
        LRPlan(**{"peak": 0.1, "total_steps": 10, **wrong})
