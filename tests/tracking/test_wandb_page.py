"""Every command of docs/wandb.md works as it stands there, against a server that takes what arrives."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from dst.records.catalog import find_runs
from dst.records.read import read_summary
from dst.tracking.tables import MOST_ROWS, TABLES
from tests.processes import REPOSITORY
from tests.tracking.stub_server import stub_server

PAGE = (REPOSITORY / "docs" / "wandb.md").read_text()
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


@pytest.mark.slow
def test_every_command_does_what_the_page_says(tmp_path):
    with stub_server() as stub:
        env = {**os.environ, **stub.env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        told = []
        for text in COMMANDS:
            program, *words = shlex.split(text.replace(" run.py ", f" {REPOSITORY}/run.py "), comments=True)
            assert program == "python"
            short = ["schedule.epochs=1", "schedule.update_every=5"] if "run.py" in text else []
            done = subprocess.run(
                [sys.executable, *words, *short], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            told.append(done.stdout)
        _, _, listed, sent, _ = told
        *sent_runs, counted = sorted(
            find_runs(tmp_path / "outputs"), key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns
        )
        assert len(COMMANDS) == len(told) == 5
        assert len(sent_runs) == 4  # the first run is one of the study too
        assert (listed.count("would send  "), listed.count("up to date  ")) == (3, 1)
        assert (sent.count("sent  "), sent.count("up to date  ")) == (3, 1)
        assert {project for project, _ in stub.runs} == {"sparse", "dst"}
        assert {run.about("groupName") for run in stub.runs.values()} == {"default", "study"}
        assert {name for _, name in stub.runs} == {folder.name for folder in sent_runs}
        for folder in sent_runs:
            assert stub.run(folder.name).summary["test/accuracy"] == read_summary(folder)["test/accuracy"]
        assert "sparsity/rs_reliable" in read_summary(counted)


def test_the_page_names_every_table_and_the_most_rows():
    assert re.findall(r"^\| `([^`]+)` \| `\w+\.jsonl`", PAGE, flags=re.MULTILINE) == [*TABLES]
    assert f"{MOST_ROWS:,} rows" in PAGE
