"""Who has caused a fault on a GPU that runs share, as far as CUDA's words can tell."""

import pytest

from dst.launcher.neighbours import Fault, Verdict, fault_in, judged

NAMED, VAGUE, SERVICE = Fault.NAMED, Fault.VAGUE, Fault.SERVICE

AS_TORCH_SAYS = """Traceback (most recent call last):
  File "dst/training/loop.py", line 1, in step
    loss.backward()
torch.AcceleratorError: CUDA error: {}
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("an illegal memory access was encountered", NAMED),
        ("device-side assert triggered", NAMED),
        ("misaligned address", NAMED),
        ("uncorrectable ECC error encountered", NAMED),
        ("unspecified launch failure", VAGUE),
        ("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`", VAGUE),
        ("the MPS client has been terminated by the server", SERVICE),
        ("the remote procedural call between the MPS server and the MPS client failed", SERVICE),
        ("out of memory", None),
        ("invalid argument", None),
        ("operation not permitted when stream is capturing", None),
    ],
)
def test_what_torch_says_of_a_fault(text, fault):
    assert fault_in(AS_TORCH_SAYS.format(text)) == fault


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (
            "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run some cuda "
            "functions before calling NumCudaDevices() that might have already set an error? Error 805: MPS client "
            "failed to connect to the MPS control daemon or the MPS server (Triggered internally at x.cpp:1)\n"
            "configuration error: hardware.device=cuda: PyTorch finds no CUDA GPU on this machine",
            SERVICE,
        ),
        (
            "RuntimeError: Unexpected error from cudaGetDeviceCount()\n"
            "Error 807: MPS server is not ready to accept new MPS client requests",
            SERVICE,
        ),
        ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", NAMED),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", VAGUE),
        # The first one counts: what follows in the same process is its consequence.
        (AS_TORCH_SAYS.format("misaligned address") + AS_TORCH_SAYS.format("unspecified launch failure"), NAMED),
        ("ValueError: misaligned address", None),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", None),
        ("", None),
    ],
)
def test_what_others_say_of_a_fault(output, fault):
    assert fault_in(output) == fault


@pytest.mark.parametrize(
    ("faults", "was_killed", "verdict"),
    [
        ({"a": NAMED}, False, Verdict("a")),
        ({"a": VAGUE, "b": SERVICE}, False, Verdict("a")),
        ({"a": NAMED, "b": SERVICE, "c": SERVICE}, False, Verdict("a")),
        # All have been told the same, or what one was told may be the consequence of the other's.
        ({"a": VAGUE, "b": VAGUE}, False, Verdict(None, frozenset("ab"))),
        ({"a": NAMED, "b": NAMED, "c": VAGUE}, False, Verdict(None, frozenset("ab"))),
        ({"a": NAMED, "b": VAGUE}, False, Verdict(None, frozenset("a"))),
        ({"a": VAGUE, "b": SERVICE}, True, Verdict(None, frozenset("a"))),
        ({"a": SERVICE, "b": SERVICE}, False, Verdict(None)),
    ],
)
def test_only_who_must_have_caused_it_is_blamed(faults, was_killed, verdict):
    assert judged(faults, was_killed=was_killed) == verdict
