"""Runs in other formats and with accumulated gradients resume bit-identically too."""

import pytest

from tests.chaos.test_resume import SMALL, assert_same
from tests.processes import run, run_folder, traces

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("option", ["hardware.precision=bf16", "hardware.precision=fp16", "schedule.accumulate=3"])
def test_kills_leave_no_trace(option, tmp_path):
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    assert run(*SMALL, option, cwd=undisturbed).code == 0
    for step in (15, 60, 111):
        assert run(*SMALL, option, cwd=disturbed, fault=f"kill:step:{step}").code == -9
    assert run(*SMALL, option, cwd=disturbed).code == 0
    assert_same(disturbed, traces(run_folder(undisturbed / "outputs")))
