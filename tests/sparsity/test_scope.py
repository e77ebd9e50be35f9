import pytest
from torch import nn

from dst.sparsity.scope import Scope


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 2))


def names(scope):
    return [layer.name for layer in scope.layers(net())]


def test_weights_of_convolutions_and_linear_layers_in_model_order():
    assert names(Scope()) == ["0", "3", "4"]


def test_patterns_and_dense_ends():
    assert names(Scope(exclude=["3"])) == ["0", "4"]
    assert names(Scope(include=["3", "4"])) == ["3", "4"]
    assert names(Scope(dense_first=True)) == ["3", "4"]
    assert names(Scope(dense_last=True)) == ["0", "3"]


def test_the_layer_of_the_outputs_is_known_in_or_out_of_scope():
    assert [layer.is_output for layer in Scope().layers(net())] == [False, False, True]
    assert [layer.is_output for layer in Scope(dense_last=True).layers(net())] == [False, False]
    first, second, tied = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    tied.weight = first.weight
    assert [layer.is_output for layer in Scope().layers(nn.Sequential(first, second, tied))] == [True, False]


def test_shared_weight_appears_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert len(Scope().layers(nn.Sequential(first, second))) == 1


def test_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'clasifier' matches no layer: .*0, 3, 4"):
        names(Scope(exclude=["clasifier"]))


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="no layer may be sparse"):
        names(Scope(exclude=["*"]))
