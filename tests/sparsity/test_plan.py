import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dst.fractions import step_at
from dst.options import OptionError
from dst.sparsity.density_schedule import cubic
from dst.sparsity.drop_fraction import linear
from dst.sparsity.plan import UpdatePlan


def due_steps(plan):
    return [step for step in range(1, plan.total_steps + 1) if plan.due(step)]


def test_itop_updates_to_the_end_but_not_on_the_last_step_unless_asked():
    assert due_steps(UpdatePlan(every=4000, total_steps=88_000)) == list(range(4000, 88_000, 4000))
    assert UpdatePlan(every=4000, total_steps=88_000, on_last_step=True).updates() == 22  # the published code's count


def test_rigl_stops():
    assert due_steps(UpdatePlan(every=100, total_steps=1000, stop=0.75)) == [100, 200, 300, 400, 500, 600, 700]
    assert due_steps(UpdatePlan(every=100, total_steps=1000, start=0.25, stop=0.5)) == [300, 400, 500]


@given(st.integers(0, 10_000), st.integers(1, 1_000_000))
@example(5_500, 88_000)  # 0.55 * 88000 is 48400.00000000001
def test_decimal_fractions_of_training_are_exact_steps(ten_thousandths, steps):
    whole, rest = divmod(ten_thousandths * steps, 10_000)
    step = step_at(ten_thousandths / 10_000, steps)
    assert step == whole if rest < 5_000 else step == whole + 1 if rest > 5_000 else step in (whole, whole + 1)


def test_an_update_at_a_decimal_fraction_takes_place():
    plan = UpdatePlan(every=100, total_steps=88_000, start=0.55, stop=0.57)
    assert (plan.start_step, plan.stop_step) == (48_400, 50_160)
    assert due_steps(plan)[0] == 48_400
    assert plan.updates() == len(due_steps(plan)) == 18


def test_plan_curves_and_ramp_agree_where_a_fraction_is():
    """0.29 of 100 steps is 28.999999999999996 in floats: an integer part of it would be a step short."""
    plan = UpdatePlan(every=1, total_steps=100, stop=0.29)
    curve = cubic(UpdatePlan(every=1, total_steps=100), 0.1, end=0.29)
    assert curve(28) > 0.1 == curve(29)
    assert due_steps(plan)[-1] == 29
    assert linear(plan, initial=0.4, horizon="stop")(29) == 0.0 < linear(plan, initial=0.4, horizon="stop")(28)


@given(st.integers(1, 50), st.integers(1, 400), st.floats(0, 0.9), st.floats(0.05, 1), st.booleans())
def test_number_of_updates_is_the_number_of_due_steps(every, total, start, stop, on_last):
    if start >= stop:
        return
    if on_last and stop < 1:
        return
    try:
        plan = UpdatePlan(every=every, total_steps=total, start=start, stop=stop, on_last_step=on_last)
    except OptionError:  # said of a plan with an update, it would be seen here
        last = min(step_at(stop, total), total if on_last else total - 1)
        assert not any(step % every == 0 for step in range(max(1, step_at(start, total)), last + 1))
        return
    assert plan.updates() == len(due_steps(plan)) > 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"every": 0}, "every=0: must be >= 1"),
        ({"start": 0.8, "stop": 0.5}, r"start=0.8: must be in \[0, stop=0.5\)"),
        ({"every": 1, "order": "replaces_step"}, "order=replaces_step: with every=1 every step would be an update"),
        ({"on_last_step": True, "stop": 0.5}, "on_last_step=true: with stop=0.5 it would be ignored"),
        (
            {"every": 100},
            "every=100: there is no update in all 100 steps, which allow .* from step 0 to 99",
        ),
        ({"every": 60, "start": 0.7}, "every=60: there is no update in all 100 steps, .* from step 70 to 99"),
        ({"order": "before"}, "order=before: allowed: after_step, replaces_step"),
    ],
)
def test_impossible_plans(wrong, told):
    with pytest.raises(ValueError, match=told):
        UpdatePlan(**{"every": 10, "total_steps": 100, **wrong})
