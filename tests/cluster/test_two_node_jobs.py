"""What may happen to a job of two nodes; its run ends with the losses of one process, but for rounding."""

import os
import re
import signal
import sys

import pytest

from tests.cluster.jobs import WITHOUT_WARNING

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.xdist_group("slurm")]


@pytest.fixture(autouse=True)
def two_nodes(slurm):
    """All tests here need them."""
    if len(slurm.nodes) < 2:
        pytest.skip("name spaces for virtual nodes are refused here")


@pytest.fixture
def ends_as(jobs, undisturbed):
    """Wait until a job is done; its losses must be those of `undisturbed`."""

    def check(job, is_resumed=True):
        assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
        assert bool(re.search(r"going on from step \d+", jobs.log(job))) == is_resumed, jobs.log(job)
        found = jobs.losses()
        assert [step for step, _ in found] == [step for step, _ in undisturbed]
        # float32 sums in another order
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in undisturbed], rel=1e-4)

    return check


def test_undisturbed(jobs, ends_as):
    ends_as(jobs.submit("--nodes", "2", "strategy=ddp"), is_resumed=False)


@pytest.mark.parametrize("distribution", ["block", "cyclic"])
def test_ranks_of_a_node_follow_each_other_whatever_the_default(jobs, distribution):
    changes = {
        "--ntasks-per-node=1": "--ntasks-per-node=2\n#SBATCH --distribution=cyclic",
        "--distribution=block": f"--distribution={distribution}",
    }
    job = jobs.submit_changed(changes, "--nodes", "2", "strategy={kind: ddp, context_parallel: 2}", "training.steps=4")
    end, log = jobs.wait_for_end(job), jobs.log(job)
    if distribution == "block":
        assert end == "COMPLETED", log
        assert "ddp on 4 processes (2 per node, started by Slurm), each window shared by 2" in log
    else:
        assert end == "FAILED", log
        assert "srun has started the ranks 0,2 on this node, but those of a node must follow each other" in log
        assert "refused: recipe, data or folder are wrong" in log


@pytest.mark.parametrize(
    ("event", "strategy"),
    [
        ("warned", "ddp"),
        ("warned", "{kind: ddp, context_parallel: 2}"),  # it waits in the middle of a layer
        ("preempted", "ddp"),
        ("preempted without a warning", "ddp"),
    ],
)
def test_told_to_stop_while_the_ranks_are_out_of_step(jobs, ends_as, event, strategy):
    """The signal reaches rank 0 while it waits for rank 1 in the middle of a step, and rank 1 at another place."""
    options = ("--nodes", "2", f"strategy={strategy}")
    if event == "preempted without a warning":
        job, number = jobs.submit_changed(WITHOUT_WARNING, *options), signal.SIGTERM
        because = "requeued: stopped by a signal (exit code 143)"
    else:
        job, number = jobs.submit(*options), signal.SIGUSR1
        because = "requeued: warned by SIGUSR1"
    with jobs.standing_still(job, rank=1, until=number):
        if event == "warned":
            jobs.slurm.call("scancel", "--signal=USR1", job)
        else:
            jobs.start_time_eater()
    ends_as(job)
    log = jobs.log(job)
    assert log.count(because) == log.count("requeued:") == 1, log
    assert ("each window shared by 2" in log) == ("context_parallel" in strategy), log


def test_warned_while_it_starts(jobs, ends_as):
    """Slurm does not say why; counted, because a start that is too long for its time limit makes no way."""
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    processes = [jobs.stop_at_start(job, rank) for rank in (0, 1)]
    jobs.slurm.call("scancel", "--signal=USR1", job)
    for process in processes:
        jobs.go_on(job, process, signal.SIGUSR1)
    ends_as(job, is_resumed=False)
    said = (
        "requeued: warned by SIGUSR1 (time limit or scancel --signal=USR1) while there was nothing to save (failure 1"
    )
    assert jobs.log(job).count(said) == 1, jobs.log(job)


def test_a_rank_is_killed(jobs, ends_as):
    """The other one notices, and has the time to say so."""
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    jobs.kill(job, rank=1)
    ends_as(job)
    log = jobs.log(job)
    assert log.count("requeued: a process failed with exit code 137 (failure 1") == log.count("requeued:") == 1, log
    assert "rank 0 lost contact with another process" in log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--kill-on-bad-exit=0 --wait=3", "a process failed with exit code 137"),
        # As in a template of one's own, or where srun has waited in vain: the other one dies of srun's SIGTERM.
        ("--kill-on-bad-exit=1", "a process was ended by SIGTERM with nothing saved"),
    ],
)
def test_a_rank_is_killed_and_srun_ends_the_other(jobs, ends_as, options, said):
    """However srun does it, and whichever exit code it makes of it: it is no preemption, and it is counted."""
    job = jobs.submit_changed({r"--kill-on-bad-exit=\d --wait=\d+": options}, "--nodes", "2", "strategy=ddp")
    _, killed = (jobs.stop_at_start(job, rank) for rank in (0, 1))
    os.kill(killed, signal.SIGKILL)
    ends_as(job, is_resumed=False)
    assert jobs.log(job).count(f"requeued: {said}") == 1, jobs.log(job)
    assert (jobs.place / f"run/slurm/failures-{job}").read_text().count("\n") == 1


def test_a_rank_hangs(jobs, ends_as):
    """The other one ends with its stacks on file; srun ends the one that cannot, and that one has another exit code."""
    settings = ("--nodes", "2", "strategy=ddp", "watchdog.minutes=0.5")
    job = jobs.submit_changed({"--wait=60": "--wait=3"}, *settings)
    with jobs.standing_still(job, rank=1):
        jobs.wait(lambda: "requeued:" in jobs.log(job), job)
    ends_as(job)
    assert jobs.log(job).count("requeued: a process hung (exit code 75") == 1, jobs.log(job)
    assert "in _watch" in (jobs.place / "run/logs/hang-rank-0.txt").read_text()


def test_a_node_is_lost_and_comes_back(jobs, ends_as):
    """No other node is there: the job waits for this one."""
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    with jobs.standing_still(job):
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


def test_preflight_of_a_process_on_each_node(jobs, tmp_path):
    """Both runs and all checks under one `srun`, as docs/cluster.md has it; the processes meet anew for each run."""
    request = ("--nodes=2", "--ntasks-per-node=1", "--time=5", "--job-name=preflight")
    recipe = ("--recipe", str(jobs.recipe), "strategy=ddp", "training.micro_batch=1", "training.threads=1")
    command = (sys.executable, "-m", "dla_train", "preflight", *recipe, "--steps=4", "--run-dir=there")
    said = jobs.slurm.call("srun", *request, *command, cwd=tmp_path)
    assert said.splitlines()[0] == "# Preflight of micro"
    assert said.splitlines()[-1] == "All is well."
    assert "going on" in said
    assert not (tmp_path / "there").exists()
