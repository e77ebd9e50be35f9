"""The way of a cluster's users: submitted where there is no GPU, to the end of what can be observed without one."""

import shutil
import socket

import pytest
import torch

from dst.launcher.submit import wait
from dst.records.catalog import find_runs
from dst.records.read import read_json, read_launch, read_status
from tests.processes import REPOSITORY, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which its jobs would find")
def test_runs_on_gpus_are_submitted_without_one_and_their_jobs_say_what_is_missing(cluster, tmp_path):
    conf = shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    example = (conf / "hardware" / "site_example.yaml").read_text()
    (conf / "hardware" / "our_site.yaml").write_text(example.replace("partition: gpu", "partition: batch"))
    for hardware in ("slurm", "slurm_ddp", "our_site"):
        result = run(
            "-m",
            f"hardware={hardware}",
            "tracking=none",
            "tracking.progress=none",
            cwd=tmp_path,
            conf=conf,
            env=cluster.env,
        )
        assert (result.code, "1 runs: 1 submitted" in result.output.splitlines()) == (0, True), result.output

    folders = find_runs(tmp_path / "outputs")
    asked = {read_json(folder / "run.json")["config"]["hardware.processes"] for folder in folders}
    assert (len(folders), asked) == (3, {1, 2})
    for folder, observed in zip(folders, wait(folders), strict=True):
        assert (observed.state, read_status(folder)["step"]) == ("failed", 0)
        told = f"hardware.device=cuda: PyTorch finds no CUDA GPU on this machine ({socket.gethostname()})"
        assert told in observed.why
        cluster.wait_for(read_launch(folder)["job"], "FAILED")
