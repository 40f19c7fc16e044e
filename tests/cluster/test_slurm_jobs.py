"""Jobs of one process: whatever happens to one, its run ends with the losses of a run that nothing happened to."""

import contextlib
import os
import re
import shutil
import signal
import time

import pytest

from tests.cluster.jobs import has_got

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.xdist_group("slurm")]


def finished_after_a_requeue(jobs, job, because, folder="run"):
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job, folder)
    log = jobs.log(job, folder)
    assert re.search(r"going on from step \d+", log), log
    assert because in log, log
    assert log.count("requeued:") == 1, log
    return True


def test_warned_it_saves_and_goes_on(jobs, undisturbed):
    job = jobs.submit()
    jobs.wait_for_step(job, 30)
    jobs.slurm.call("scancel", "--signal=USR1", job)
    assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
    assert jobs.losses() == undisturbed


def test_the_time_limit_comes_near(jobs, undisturbed):
    job = jobs.submit("--time", "2", "--warn-seconds", "60")
    jobs.wait_for_step(job, 30)
    process = jobs.process()
    os.kill(process, signal.SIGSTOP)  # a long step
    jobs.wait(lambda: has_got(process, signal.SIGUSR1), job)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
    assert jobs.losses() == undisturbed


def test_preempted_with_a_warning(jobs, undisturbed):
    job = jobs.submit()
    jobs.wait_for_step(job, 30)
    jobs.start_time_eater()
    assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
    assert jobs.losses() == undisturbed


def test_preempted_without_a_warning(jobs, undisturbed):
    """SIGTERM only: as on clusters that do not send --signal at preemption."""
    jobs.submit_as_told(*jobs.options(), "--dry-run")
    script = jobs.place / "run/slurm/job.sh"
    script.write_text(re.sub(r"#SBATCH --signal=.*\n", "", script.read_text()))
    output = f"--output={script.parent}/job-%j.log"
    job = jobs.slurm.call("sbatch", "--parsable", output, str(script)).strip()
    jobs.wait_for_step(job, 30)
    jobs.start_time_eater()
    assert finished_after_a_requeue(jobs, job, "requeued: stopped by a signal (exit code 143)")
    assert jobs.losses() == undisturbed


def test_killed_it_goes_on_from_its_newest_checkpoint(jobs, undisturbed):
    job = jobs.submit()
    jobs.wait_for_step(job, 30)
    jobs.kill()
    assert finished_after_a_requeue(jobs, job, "requeued: a process failed with exit code 137 (failure 1")
    assert jobs.losses() == undisturbed


def test_killed_too_often_it_fails_and_can_be_submitted_again(jobs, undisturbed):
    job = jobs.submit("--requeue-limit", "0")
    jobs.wait_for_step(job, 30)
    jobs.kill()
    assert jobs.wait_for_end(job) == "FAILED"
    assert "a process failed with exit code 137; not requeued: failure 1, requeued after up to 0" in jobs.log(job)
    again = jobs.submit()
    assert jobs.wait_for_end(again) == "COMPLETED", jobs.log(again)
    assert "going on from step 20" in jobs.log(again)
    assert jobs.losses() == undisturbed


def test_a_lost_node(jobs, undisturbed):
    if len(jobs.slurm.nodes) < 2:
        pytest.skip("name spaces for virtual nodes are refused here")
    job = jobs.submit()
    jobs.wait_for_step(job, 30)
    node = jobs.show(job, "NodeList")
    jobs.slurm.lose_node(node)
    try:
        assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
        assert jobs.show(job, "NodeList") != node
    finally:
        jobs.slurm.start_node(node)
    assert jobs.show(job, "Restarts") == "1"
    assert "going on from step 20" in jobs.log(job)
    assert jobs.losses() == undisturbed


def test_cancelled_it_ends_for_good(jobs):
    job = jobs.submit()
    jobs.wait_for_step(job, 30)
    jobs.slurm.call("scancel", job)
    assert jobs.wait_for_end(job) == "CANCELLED"
    time.sleep(5)  # longer than a requeued job waits
    assert jobs.show(job, "JobState") == "CANCELLED"
    assert "requeued:" not in jobs.log(job)


def test_a_second_job_in_the_same_folder_is_refused(jobs, undisturbed):
    job = jobs.submit()
    jobs.wait_for_step(job, 1)
    second = jobs.submit()
    assert jobs.wait_for_end(second) == "FAILED"
    assert f"is in use by job {job}" in jobs.log(second)
    assert "not requeued" in jobs.log(second)
    assert jobs.wait_for_end(job) == "COMPLETED"
    assert jobs.losses() == undisturbed


def test_an_array_of_two_recipes(jobs, undisturbed):
    """One of them is warned; the other goes on undisturbed."""
    shutil.copy(jobs.recipe, jobs.place / "other.yaml")
    said = jobs.submit_as_told(*jobs.options("."), "--recipe", "other.yaml")
    array = re.search(r"submitted job (\d+), an array of 2 runs", said)[1]
    first, second = f"{array}_0", f"{array}_1"
    jobs.wait_for_step(second, 30, folder="other")
    jobs.slurm.call("scancel", "--signal=USR1", second)
    assert finished_after_a_requeue(jobs, second, "requeued: warned by SIGUSR1", folder="other")
    assert jobs.wait_for_end(first) == "COMPLETED", jobs.log(first, "micro")
    assert jobs.show(first, "Restarts") == "0"
    assert jobs.losses("micro") == jobs.losses("other") == undisturbed


@pytest.mark.parametrize("event", ["undisturbed", "warned", "a rank killed"])
def test_two_nodes_train_one_run(jobs, undisturbed, event):
    """A process on each node. float32 sums in another order: losses agree with one process to rounding."""
    if len(jobs.slurm.nodes) < 2:
        pytest.skip("this Slurm has one node")
    job = jobs.submit("--nodes", "2", "strategy=ddp")
    if event != "undisturbed":
        jobs.wait_for_step(job, 30)
        if event == "warned":
            jobs.slurm.call("scancel", "--signal=USR1", job)
            assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
        else:
            jobs.kill(rank=1)
            assert finished_after_a_requeue(jobs, job, "requeued: a process failed")
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
    found = jobs.losses()
    assert [step for step, _ in found] == [step for step, _ in undisturbed]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in undisturbed], rel=1e-4)
