"""One cluster for all tests that want it, in each process of a parallel run that gets some of them."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_programs, verdict


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    what, why = verdict(missing_programs(), os.environ)
    if what == "skip":
        pytest.skip(why)
    if what == "fail":
        pytest.fail(why, pytrace=False)
    with Cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def _slurm_of_the_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what a test calls find the cluster, and leave no job to the next test."""
    if "cluster" not in request.fixturenames:
        yield
        return
    running: Cluster = request.getfixturevalue("cluster")
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, running.env[name])
    yield
    running.cancel_all()
