import pytest

from dst.sparsity.drop_fraction import constant, cosine, linear
from dst.sparsity.plan import UpdatePlan


@pytest.mark.parametrize(
    ("step", "value"), [(1500, 0.499645), (22_000, 0.427509), (44_000, 0.2525), (87_000, 0.005158)]
)
def test_cosine_values_of_itop(step, value):
    assert cosine(UpdatePlan(every=1500, total_steps=88_000), initial=0.5, floor=0.005)(step) == pytest.approx(
        value, abs=5e-7
    )


def test_horizons_and_ends():
    plan = UpdatePlan(every=10, total_steps=1000, stop=0.75)
    to_stop = cosine(plan, initial=0.3, horizon="stop")
    assert to_stop(0) == 0.3
    assert to_stop(375) == pytest.approx(0.15)
    assert to_stop(750) == to_stop(1000) == 0.0
    assert linear(plan, initial=0.4, floor=0.2)(500) == pytest.approx(0.3)
    assert linear(plan, initial=0.4, floor=0.2, horizon="stop")(750) == pytest.approx(0.2)
    assert constant(plan, initial=0.3)(999) == 0.3
    with pytest.raises(ValueError, match="horizon=never: allowed: end, stop"):
        cosine(plan, initial=0.3, horizon="never")
