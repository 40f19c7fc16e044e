"""What may happen to a job of two nodes; its run ends with the losses of one process, but for rounding."""

import contextlib
import os
import re
import signal

import pytest

from tests.cluster.jobs import has_got

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.xdist_group("slurm")]


@pytest.fixture(autouse=True)
def two_nodes(slurm):
    """All tests here need them."""
    if len(slurm.nodes) < 2:
        pytest.skip("name spaces for virtual nodes are refused here")


@pytest.fixture
def ends_as(jobs, undisturbed):
    """Wait until a job is done; its losses must be those of `undisturbed`."""

    def check(job):
        assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
        assert re.search(r"going on from step \d+", jobs.log(job)), jobs.log(job)
        found = jobs.losses()
        assert [step for step, _ in found] == [step for step, _ in undisturbed]
        # float32 sums in another order
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in undisturbed], rel=1e-4)

    return check


@contextlib.contextmanager
def standing_still(jobs, rank):
    """`rank` stops where it is, and the other with it, in the next collective; yields its process."""
    process = jobs.process(rank=rank)
    os.kill(process, signal.SIGSTOP)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("event", ["warned", "preempted"])
def test_told_to_stop_while_the_ranks_are_out_of_step(jobs, ends_as, event):
    """The signal reaches rank 0 while it waits for rank 1 in the middle of a step, and rank 1 at another place."""
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    jobs.wait_for_step(job, 30)
    with standing_still(jobs, rank=1) as process:
        if event == "warned":
            jobs.slurm.call("scancel", "--signal=USR1", job)
        else:
            jobs.start_time_eater()
        jobs.wait(lambda: has_got(process, signal.SIGUSR1), job)
    ends_as(job)
    assert jobs.log(job).count("requeued: warned by SIGUSR1") == 1, jobs.log(job)


def test_a_node_is_lost_and_comes_back(jobs, ends_as):
    """No other node is there: the job waits for this one."""
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    jobs.wait_for_step(job, 30)
    with standing_still(jobs, rank=0):  # so that the run is not over before the node is
        jobs.slurm.lose_node("n2")
    jobs.wait_for(job, "PENDING")
    jobs.slurm.start_node("n2")
    ends_as(job)


def test_a_run_folder_that_the_nodes_do_not_share_is_refused(jobs):
    folder = jobs.place / "run"
    folder.mkdir()
    jobs.slurm.unshare("n2", folder)
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    assert jobs.wait_for_end(job) == "FAILED", jobs.log(job)
    log = jobs.log(job)
    assert re.search(r"the run folder \S*run of n1 is not the one that n2 \(rank 1\) sees\.", log), log
    assert "All nodes must share it" in log
    assert "refused: recipe, data or folder are wrong (see above); not requeued" in log
    assert not (folder / "recipe.yaml").exists(), "nothing was begun"
