"""One Slurm for all tests here, and a run that nothing happened to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.jobs import STEPS, Jobs
from tests.cluster.virtual_slurm import CannotRun, VirtualSlurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory, cache_directory: Path) -> Iterator[VirtualSlurm]:
    """Start it; skips where it cannot run."""
    try:
        slurm = VirtualSlurm(tmp_path_factory.mktemp("slurm"))
    except CannotRun as reason:
        pytest.skip(str(reason))
    slurm.environment |= {"DLA_TRAIN_CACHE": str(cache_directory), "OMP_NUM_THREADS": "1"}
    try:
        slurm.start()
        yield slurm
    except CannotRun as reason:
        pytest.skip(str(reason))
    finally:
        slurm.stop()


@pytest.fixture
def jobs(slurm: VirtualSlurm, micro_recipe: Path, tmp_path: Path) -> Jobs:
    """Jobs in this test's own folder."""
    return Jobs(slurm, micro_recipe, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(
    slurm: VirtualSlurm, micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[int, float]]:
    """Steps and losses of a job that nothing happened to."""
    jobs = Jobs(slurm, micro_recipe, tmp_path_factory.mktemp("undisturbed"))
    job = jobs.submit()
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
    assert "finished" in jobs.log(job)
    assert jobs.show(job, "Restarts") == "0"
    losses = jobs.losses()
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    return losses
