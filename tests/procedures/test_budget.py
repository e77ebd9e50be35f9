"""How a budget of epochs is divided into pretraining and cycles, and what is said where it cannot be."""

import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dst.options import OptionError
from dst.procedures.options import Budget, budget, budget_problems, superposing_problems

EPOCHS = st.integers(1, 400)
CYCLE = st.integers(1, 60)
RATE = st.integers(1, 999).map(lambda number: number / 1000)


@pytest.mark.parametrize(
    ("epochs", "options", "divided"),
    [
        (250, {"cycle_rate": 0.1, "cycle_epochs": 8}, (226, 3)),  # published, CIFAR
        (100, {"cycle_rate": 0.2, "cycle_epochs": 2, "pretrain_epochs": 92}, (92, 4)),  # published, ImageNet
        (50, {"cycle_rate": 0.2, "cycle_epochs": 4}, (42, 2)),
        (20, {"cycle_rate": 0.2, "cycle_epochs": 4}, (16, 1)),
        (100, {"cycle_rate": 0.29, "cycle_epochs": 29}, (71, 1)),  # 0.29 * 100 is 28.999999999999996
        (10, {"cycle_rate": 0.9, "cycle_epochs": 1}, (1, 9)),
        (2, {"cycle_rate": 0.2, "cycle_epochs": 1, "pretrain_epochs": 1}, (1, 1)),
    ],
)
def test_budgets(epochs, options, divided):
    assert budget(epochs, **options) == Budget(*divided, options["cycle_epochs"])


def numbers(name, told):
    return [float(number) for number in re.findall(rf"{name}=([\d.]+)", told.partition("; ")[2])]


@given(EPOCHS, RATE, CYCLE)
def test_cycles_have_as_many_whole_cycles_as_their_share_allows_and_advice_is_right(epochs, rate, cycle):
    share = Fraction(str(rate)) * epochs
    try:
        divided = budget(epochs, cycle_rate=rate, cycle_epochs=cycle)
    except OptionError as error:
        assert share < cycle
        (shorter, higher), longer = (numbers(name, str(error)) for name in ("cycle_epochs", "cycle_rate")), str(error)
        for number in shorter:
            assert budget(epochs, cycle_rate=rate, cycle_epochs=int(number)).cycles == 1
        for number in higher:
            assert budget(epochs, cycle_rate=number, cycle_epochs=cycle).cycles >= 1
        assert bool(shorter) == (share >= 1)
        assert bool(higher) or cycle / epochs > 0.9999
        least = int(re.search(r"(\d+) epochs or more", longer)[1])
        assert budget(least, cycle_rate=rate, cycle_epochs=cycle).cycles >= 1
        assert any(budget_problems(least - 1, cycle_rate=rate, cycle_epochs=cycle))
        return
    assert divided.pretrain_epochs >= 1
    assert divided.pretrain_epochs + divided.cycles * cycle == epochs
    assert divided.cycles * cycle <= share < (divided.cycles + 1) * cycle


@given(EPOCHS, CYCLE, st.integers(1, 450))
def test_pretraining_leaves_whole_cycles_and_advice_is_the_nearest_that_does(epochs, cycle, pretrain):
    fitting = [number for number in range(1, epochs) if (epochs - number) % cycle == 0]
    if pretrain in fitting:
        divided = budget(epochs, cycle_rate=0.2, cycle_epochs=cycle, pretrain_epochs=pretrain)
        assert divided == Budget(pretrain, (epochs - pretrain) // cycle, cycle)
        return
    (told,) = budget_problems(epochs, cycle_rate=0.2, cycle_epochs=cycle, pretrain_epochs=pretrain)
    assert told.startswith(f"pretrain_epochs={pretrain}: leaves {max(epochs - pretrain, 0)} of {epochs} epochs")
    near = [int(number) for number in numbers("pretrain_epochs", told)]
    assert bool(near) == bool(fitting)
    assert all(abs(near[0] - pretrain) <= abs(number - pretrain) for number in fitting)
    assert not near or near[0] in fitting


@given(EPOCHS, RATE, CYCLE, st.booleans())
def test_one_network_alone_is_not_superposed(epochs, rate, cycle, include):
    assume(not any(budget_problems(epochs, cycle_rate=rate, cycle_epochs=cycle)))
    divided = budget(epochs, cycle_rate=rate, cycle_epochs=cycle)
    assert any(superposing_problems(divided, include)) == (divided.cycles + include < 2)


def test_words():
    (told,) = budget_problems(10, cycle_rate=0.2, cycle_epochs=4, called=lambda name: f"here.{name}")
    assert told == (
        "here.cycle_epochs=4: of 10 epochs here.cycle_rate=0.2 leaves 2 for cycles, less than one; choose "
        "here.cycle_epochs=2 or less, or here.cycle_rate=0.4 or more, or 20 epochs or more"
    )
    (told,) = budget_problems(4, cycle_rate=0.2, cycle_epochs=4, pretrain_epochs=4)
    assert told == (
        "pretrain_epochs=4: leaves 0 of 4 epochs for cycles, which is no positive multiple of cycle_epochs=4; train "
        "for more than 4 epochs, or choose shorter cycles"
    )
    (told,) = superposing_problems(Budget(6, 1, 4), include_pretrained=False)
    assert told.startswith(
        "include_pretrained=false: leaves a single network to superpose, since there is one cycle of"
    )
