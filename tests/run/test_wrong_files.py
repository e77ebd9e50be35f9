"""Files that somebody names by mistake: what was found is said, and what is expected, before anything trains."""

import pickle
import zipfile

import pytest
import torch

from dst.config.schema import Config, ConfigError, with_value
from dst.network.stored import differing, shapes_of
from dst.run.sources import checkpoint, stored
from dst.sparsity.masks_file import read_masks
from dst.training.checkpoint import Checkpoints

SHAPES = {"a": (2, 3), "b": (3, 3)}
KEYS = ["model.weights", "sparsity.init.path", "sparsity.distribution.path"]


def masks(a, b=None):
    return {"a": a, "b": torch.ones(3, 3, dtype=torch.bool) if b is None else b}


def naming(key, path):
    return with_value(Config(), key, str(path))


def run_with(folder, state):
    Checkpoints(folder / "checkpoints").save(1, state)
    return folder


def _zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "y")


BYTES = {
    "empty": (lambda path: path.write_bytes(b""), "is no file of tensors .*: it is empty"),
    "text": (lambda path: path.write_text("hello\nworld"), "it is text that begins with 'hello'"),
    "zip": (_zip, "a zip archive that is cut off or that torch has not written"),
    "cut off": (lambda path: path.write_bytes(_saved()[:300]), "a zip archive that is cut off"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 4)), "a pickle that torch has not written"),
    "noise": (lambda path: path.write_bytes(bytes(range(256))), "it has 256 bytes of something else"),
    "module": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        r"an object of torch.nn.modules.linear.Linear; save its state_dict\(\)",
    ),
    "list": (lambda path: torch.save([1], path), "holds a list, and no mapping"),
    "tensor": (lambda path: torch.save(torch.ones(1), path), "holds a Tensor, and no mapping"),
}


def _saved():
    import io

    buffer = io.BytesIO()
    torch.save({"masks": masks(torch.ones(2, 3, dtype=torch.bool))}, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", BYTES)
def test_a_file_that_is_no_file_of_tensors_is_said_to_be_what_it_is(kind, tmp_path):
    write, told = BYTES[kind]
    write(tmp_path / "file")
    with pytest.raises(ValueError, match=told):
        read_masks(str(tmp_path / "file"), None, SHAPES)


STATES = {
    "weights": ({"0.weight": torch.ones(2)}, "there are no masks in .*, it has 0.weight: give the checkpoint of a run"),
    "empty": ({"sparsifier": {}}, "there are no masks"),
    "nothing": ({"sparsifier": None}, "there are no masks in .*, it has sparsifier"),
    "list": ({"masks": [1]}, "'masks' in .* is a list, and no mapping"),
    "text": ({"masks": {"a": "x", "b": "y"}}, "'masks' in .* has a str as a, and no tensor"),
    "float": (
        {"masks": masks(torch.full((2, 3), 0.3))},
        "layer a in .* is no mask: it has torch.float32 values other than 0 and 1, such as 0.3",
    ),
    "nan": ({"masks": masks(torch.full((2, 3), torch.nan))}, "such as nan"),
    "signs": ({"masks": masks(torch.tensor([[-1, 0, 1]] * 2))}, "torch.int64 values other than 0 and 1, such as -1"),
    "complex": ({"masks": masks(torch.ones(2, 3, dtype=torch.cfloat))}, "no dense 0 and 1"),
    "all zero": (
        {"masks": masks(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool))},
        "are all zero: they leave no weight in any layer",
    ),
}


@pytest.mark.parametrize("kind", STATES)
def test_what_are_no_masks_is_not_taken_for_masks(kind, tmp_path):
    state, told = STATES[kind]
    torch.save(state, tmp_path / "file")
    with pytest.raises(ValueError, match=told):
        read_masks(str(tmp_path / "file"), None, SHAPES)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_0_and_1_are_masks_in_any_number_format(dtype, tmp_path):
    wanted = torch.tensor([[1, 0, 1], [0, 0, 1]])
    torch.save({"sparsifier": {"masks": masks(wanted.to(dtype))}}, tmp_path / "file")
    found = read_masks(str(tmp_path / "file"), None, SHAPES)
    assert found["a"].dtype == torch.bool
    assert found["a"].tolist() == wanted.bool().tolist()


@pytest.mark.parametrize("key", KEYS)
def test_a_checkpoint_without_what_a_key_asks_for_is_refused(key, tmp_path):
    run_with(tmp_path, {"counters": {}})
    with pytest.raises(ConfigError, match=rf"{key}=.*there (is|are) no \w+ in .*step_000000001.pt, it has counters"):
        stored(naming(key, tmp_path), key)


@pytest.mark.parametrize("key", KEYS)
def test_a_path_that_is_no_run_folder_says_which_is(key, tmp_path):
    run = run_with(tmp_path / "run", {"model": {}})
    (run / "run.json").write_text("{}")
    for path in (run / "checkpoints" / "step_000000001.pt", run / "checkpoints"):
        with pytest.raises(ConfigError, match=rf"{key}={path} is a .*, and no run's folder; give {run}$"):
            checkpoint(naming(key, path), key)
    elsewhere = tmp_path / "weights.pt"
    torch.save({}, elsewhere)
    with pytest.raises(ConfigError, match=rf"{key}={elsewhere} is a file, and no run's folder; give a run's folder"):
        checkpoint(naming(key, elsewhere), key)


def test_weights_of_another_model_are_refused_with_both_shapes():
    ours = {"fc.weight": (3, 4), "fc.bias": (3,)}
    assert differing(shapes_of({"fc.weight": torch.ones(3, 5), "out": torch.ones(1)}), ours) == (
        "fc.bias is absent there and 3 here, fc.weight is 3x5 there and 3x4 here, out is 1 there and absent here"
    )
