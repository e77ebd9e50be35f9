"""What a part says of its parameters is put into config terms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.config.schema import ConfigError
from dst.data.dataset import NotHereError
from dst.run.feasible import check
from dst.run.terms import in_config_terms, translated
from tests.composed import compose_cells
from tests.processes import REPOSITORY


@pytest.mark.parametrize(
    ("message", "nodes", "others", "expected"),
    [
        ("crop_padding=5: too much", ("data",), {}, "data.augment.crop_padding=5: too much"),
        ("storage=stream; set size=None", ("data",), {}, "data.storage=stream; set data.size=null"),
        ("fetch again (download=True)", ("data",), {}, "fetch again (data.download=true)"),
        ("fraction=0.5: no", (), {"fraction": "data.val_fraction"}, "data.val_fraction=0.5: no"),
        ("data.root=x, root=y", ("data",), {}, "data.root=x, data.root=y"),
        ("/data/root=1/x-root=2 and torch=3", ("data",), {}, "/data/root=1/x-root=2 and torch=3"),
        ("batches=2", ("sparsity.init", "sparsity.distribution"), {}, "batches=2"),  # which of the two is not known
        ("batches=2", ("sparsity.init",), {}, "sparsity.init.batches=2"),
        ("size=Nonesuch", ("data",), {}, "data.size=Nonesuch"),
    ],
)
def test_parameters_become_keys(message, nodes, others, expected):
    assert translated(message, *nodes, **others) == expected
    assert translated(expected, *nodes, **others) == expected


@given(st.lists(st.sampled_from(["root", "size", "data", "None", "True", "=", ".", "/", "-", " ", "x"]), max_size=12))
def test_to_translate_twice_changes_nothing(pieces):
    once = translated("".join(pieces), "data")
    assert translated(once, "data") == once


def test_an_error_keeps_its_type_and_its_cause():
    cause = OSError("gone")
    with pytest.raises(NotHereError, match=r"^data\.root=x is empty$") as caught, in_config_terms("data"):
        raise NotHereError("root=x is empty") from cause
    assert caught.value.__cause__ is cause
    with pytest.raises(ConfigError) as caught, in_config_terms("data"):
        raise ConfigError(["root=x", "size=3"])
    assert caught.value.problems == ["root=x", "size=3"]


REFUSED = [
    (["data.root=nowhere", "data=image_folder"], r"Set data\.root=FOLDER"),
    (["data.root=nowhere", "data=mnist", "data.download=false"], r"data\.download=false.*let data\.root=FOLDER"),
    (["data.augment.crop_padding=9"], r"data\.augment\.crop_padding=9: .* or data\.augment\.padding_mode=zeros"),
    (["data.mean=[0.5,0.5]", "data.std=[0.5,0.5]"], r"data\.mean=\[0\.5, 0\.5\] has 2 numbers"),
    (["data.storage=stream"], r"data\.storage=stream: .* choose data\.storage=auto, and data\.augment\.resized_crop"),
    (["data.val_fraction=0.001"], r"data\.val_fraction=0\.001: "),
    (["model=lenet_5"], r"model lenet_5 .* set data\.size=16 or more"),
    (["sparsity=rigl_itop", "sparsity.density=0.1", "schedule.update_every=9999"], r"^sparsity\.update\.every=9999"),
    (
        ["sparsity=gmp", "sparsity.density=0.1", "sparsity.density_schedule.end=0.5", "schedule.update_every=1000"],
        r"no update between sparsity\.density_schedule\.start=0\.0 and sparsity\.density_schedule\.end=0\.5",
    ),
    (["sparsity=rigl_itop", "sparsity.density=0.5", "sparsity.scope.exclude=[fc]"], r"scope pattern 'fc' matches no"),
    (
        ["sparsity=nm_rigl", "sparsity.pattern.m=7", "sparsity.pattern.indivisible=error"],
        r"keep such layers dense \(sparsity\.pattern\.indivisible=dense\)",
    ),
]


@pytest.mark.parametrize(("overrides", "told"), REFUSED, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_users_read_keys(overrides, told, tmp_path):
    """What a part refuses comes to the user with the key, the value and the remedy in config terms."""
    overrides = [text.replace("nowhere", str(tmp_path)) for text in overrides]
    with pytest.raises(ConfigError, match=told):
        check(*[config for _, config in compose_cells(REPOSITORY / "conf", overrides, multirun=False)])
