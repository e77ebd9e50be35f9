"""What the kernels of units become on a GPU of compute capability 9.0, compiled ahead of time, without one.

Read from the machine code: instructions of tensor cores in half precision, and none, but ordinary ones, in float32;
asynchronous copies of 16 bytes; nothing in the stack, that is, no registers spilled.
"""

import re
import subprocess
from collections import Counter

import pytest
import torch

from dst.kernels import unit_blocks
from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import UnitBlocks
from dst.kernels.units import BLOCKS, units_of
from tests.kernels.triton_here import needs_triton

pytestmark = needs_triton

CONV, LINEAR = Shape(256, 256, 16, 16, (3, 3), (1, 1), (1, 1)), Shape(1024, 1024)
SAMPLES = 128
PASSES = ("forward", "input_gradient", "weight_gradient")
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"}


class Recorder:
    """Stands for the kernels: has what the last one was started with."""

    def __init__(self, kernels):
        self._kernels = kernels

    def __getattr__(self, name):
        return _Started(self, getattr(self._kernels, name))


class _Started:
    def __init__(self, recorder, kernel):
        self.recorder, self.kernel = recorder, kernel

    def __getitem__(self, grid):
        def start(*given, **constants):
            self.recorder.last = self.kernel, grid, given, constants

        return start


@pytest.fixture
def started(monkeypatch):
    unit_blocks.kernels.cache_clear()
    recorder = Recorder(unit_blocks.kernels())
    monkeypatch.setattr(unit_blocks, "kernels", lambda: recorder)
    return recorder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def compiled(started, cache, monkeypatch):
    """Return what compiles a pass as a layer starts it, into its code, disassembled, and the use of the stack."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))

    def compile_pass(shape, block, dtype, kind):
        start(shape, block, dtype, kind)
        kernel, _, given, constants = started.last
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        signature, attributes = dict.fromkeys(kernel.arg_names, "constexpr"), {}
        for i, (name, value) in enumerate(zip(kernel.arg_names, given, strict=False)):
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = f"*{TYPES[value.dtype]}" if is_tensor else "i32"
            if is_tensor or (value % 16 == 0 and not kernel.params[i].do_not_specialize):
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        path = cache / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        tools = triton.knobs.nvidia
        code = _said(tools.nvdisasm.path, "-c", path)
        (stack,) = re.findall(r"STACK:(\d+)", _said(tools.cuobjdump.path, "-res-usage", path))
        return Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?\s*([A-Z][\w.]+)", code, re.MULTILINE)), int(
            stack
        )

    return compile_pass


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def start(shape, block, dtype, kind):
    """Start a pass of a layer, in which a tenth of the units is active."""
    channels, taps = shape.channels // 16, shape.taps
    generator = torch.Generator().manual_seed(0)
    units = torch.rand(shape.outs // block, channels, 1, taps, generator=generator) < 0.1
    mask = units.repeat_interleave(block, 0).expand(-1, -1, 16, -1)[torch.randperm(shape.outs, generator=generator)]
    mask = mask.reshape(shape.outs, shape.channels, *(shape.kernel if taps > 1 else ()))
    layer = UnitBlocks(units_of(mask, block), shape, "cpu")
    x = torch.empty(SAMPLES, shape.height, shape.width, shape.channels, dtype=dtype, device="meta")
    y = torch.empty(SAMPLES, *shape.out, shape.outs, dtype=dtype, device="meta")
    values = torch.empty(layer.size, dtype=dtype, device="meta")
    if kind == "forward":
        layer.forward(values, None, x, y)
    elif kind == "input_gradient":
        layer.input_gradient(values, y, x)
    else:
        layer.weight_gradient(x, y)


def _said(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def _of(code, *names):
    """Return how many instructions have a name that begins with one of these."""
    return sum(number for name, number in code.items() if name.startswith(names))


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("block", BLOCKS)
def test_half_precision_is_multiplied_by_tensor_cores(compiled, kind, block):
    code, stack = compiled(CONV, block, torch.bfloat16, kind)
    side = 16 if kind == "input_gradient" else block
    assert _of(code, f"HGMMA.64x{side}x16.F32.BF16") > 0, code
    assert _of(code, "FFMA", "HMMA") == 0, code
    check_copies(code, stack)


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("block", BLOCKS)
def test_single_precision_is_exact(compiled, kind, block):
    """No tensor cores: they would round inputs to ten bits."""
    code, stack = compiled(CONV, block, torch.float32, kind)
    assert _of(code, "FFMA") > 0, code
    assert _of(code, "HGMMA", "HMMA") == 0, code
    check_copies(code, stack)


@pytest.mark.parametrize("kind", PASSES)
def test_linear_layers_are_as_good(compiled, kind):
    code, stack = compiled(LINEAR, 64, torch.bfloat16, kind)
    assert _of(code, "HGMMA") > 0, code
    check_copies(code, stack)


@pytest.mark.parametrize("kind", PASSES)
def test_tf32_is_for_tensor_cores_where_torch_allows_it(compiled, kind, tf32):
    code, stack = compiled(CONV, 64, torch.float32, kind)
    assert _of(code, "HGMMA") == sum(number for name, number in code.items() if name.endswith("F32.TF32")) > 0, code
    assert stack == 0


def check_copies(code, stack):
    assert sum(number for name, number in code.items() if name.startswith("LDGSTS") and name.endswith(".128")) > 0, code
    assert _of(code, "STL", "LDL") == 0, code
    assert stack == 0
