"""Jobs of one process: whatever happens to one, its run ends with the losses of a run that nothing happened to."""

import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.jobs import WITHOUT_WARNING

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.xdist_group("slurm")]


def finished_after_a_requeue(jobs, job, because, folder="run"):
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job, folder)
    log = jobs.log(job, folder)
    assert re.search(r"going on from step \d+", log), log
    assert log.count(because) == log.count("requeued:") == 1, log
    return True


def test_warned_it_saves_and_goes_on(jobs, undisturbed):
    job = jobs.submit()
    with jobs.standing_still(job, until=signal.SIGUSR1):
        jobs.slurm.call("scancel", "--signal=USR1", job)
    assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
    assert jobs.losses() == undisturbed


def test_srun_asks_for_the_cores_that_the_job_has(jobs):
    """Nothing is bound to cores here, but srun reads this variable, and no other since Slurm 22.05."""
    job = jobs.submit("--cpus-per-task", "3")
    with jobs.standing_still(job) as process:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        jobs.slurm.call("scancel", job)
    assert b"SRUN_CPUS_PER_TASK=3" in environment


def test_the_time_limit_comes_near(jobs, undisturbed):
    """Slurm knows minutes only: the limit is the second next, set in the middle of the run."""
    job = jobs.submit("--time", "60", "--warn-seconds", "60")
    with jobs.standing_still(job, until=signal.SIGUSR1):
        hours, minutes, _ = map(int, jobs.show(job, "RunTime").split(":"))
        jobs.slurm.call("scontrol", "update", f"jobid={job}", f"timelimit={60 * hours + minutes + 2}")
    jobs.wait(lambda: jobs.show(job, "Restarts") == "1" and jobs.show(job, "JobState") in {"PENDING", "RUNNING"}, job)
    jobs.slurm.call("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
    assert jobs.losses() == undisturbed


def test_a_step_too_long_for_the_warning(jobs, undisturbed):
    """It would run into the time limit, which ends a job for good. Without a warning: that would make the run go on."""
    every_second = {r"left < 600 \? left : 600": "1"}  # not every ten minutes, the script looks at the limit
    job = jobs.submit_changed(WITHOUT_WARNING | every_second, "--time", "60")
    with jobs.standing_still(job):
        hours, minutes, seconds = map(int, jobs.show(job, "RunTime").split(":"))
        limit = 60 * hours + minutes + (1 if seconds < 30 else 2)
        jobs.slurm.call("scontrol", "update", f"jobid={job}", f"timelimit={limit}")
        jobs.wait(lambda: "requeued:" in jobs.log(job), job)
    jobs.wait(lambda: jobs.show(job, "Restarts") == "1" and jobs.show(job, "JobState") in {"PENDING", "RUNNING"}, job)
    jobs.slurm.call("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert finished_after_a_requeue(jobs, job, "requeued: the time limit came before a step was done and saved")
    assert "(failure 1, " in jobs.log(job)
    assert jobs.losses() == undisturbed


def test_preempted_with_a_warning(jobs, undisturbed):
    job = jobs.submit()
    with jobs.standing_still(job, until=signal.SIGUSR1):
        jobs.start_time_eater()
    assert finished_after_a_requeue(jobs, job, "requeued: warned by SIGUSR1")
    assert jobs.losses() == undisturbed


def test_preempted_without_a_warning(jobs, undisturbed):
    job = jobs.submit_changed(WITHOUT_WARNING)
    with jobs.standing_still(job, until=signal.SIGTERM):
        jobs.start_time_eater()
    assert finished_after_a_requeue(jobs, job, "requeued: stopped by a signal (exit code 143)")
    assert jobs.losses() == undisturbed


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_preempted_while_it_starts(jobs, undisturbed, number):
    """Nothing can be saved, and nobody has failed."""
    job = jobs.submit() if number == signal.SIGUSR1 else jobs.submit_changed(WITHOUT_WARNING)
    process = jobs.stop_at_start(job)
    jobs.start_time_eater()
    jobs.go_on(job, process, number)
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
    assert jobs.log(job).count("requeued: preempted while there was nothing to save") == 1, jobs.log(job)
    assert jobs.log(job).count("requeued:") == 1, jobs.log(job)
    assert jobs.losses() == undisturbed


def test_killed_it_goes_on_from_its_newest_checkpoint(jobs, undisturbed):
    job = jobs.submit()
    newest = jobs.kill(job)
    assert finished_after_a_requeue(jobs, job, "requeued: a process failed with exit code 137 (failure 1")
    assert f"going on from step {newest} " in jobs.log(job)
    assert jobs.losses() == undisturbed


def test_killed_too_often_it_fails_and_can_be_submitted_again(jobs, undisturbed):
    job = jobs.submit("--requeue-limit", "0")
    newest = jobs.kill(job)
    assert jobs.wait_for_end(job) == "FAILED"
    assert "a process failed with exit code 137; not requeued: failure 1, requeued after up to 0" in jobs.log(job)
    again = jobs.submit()
    assert jobs.wait_for_end(again) == "COMPLETED", jobs.log(again)
    assert f"going on from step {newest} " in jobs.log(again)
    assert jobs.losses() == undisturbed


def test_a_lost_node(jobs, undisturbed):
    if len(jobs.slurm.nodes) < 2:
        pytest.skip("name spaces for virtual nodes are refused here")
    job = jobs.submit()
    with jobs.standing_still(job):
        node, newest = jobs.show(job, "NodeList"), jobs.newest_checkpoint()
        jobs.slurm.lose_node(node)
    try:
        assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
        assert jobs.show(job, "NodeList") != node
    finally:
        jobs.slurm.start_node(node)
    assert jobs.show(job, "Restarts") == "1"
    assert f"going on from step {newest} " in jobs.log(job)
    assert jobs.losses() == undisturbed


def test_canceled_it_saves_and_ends_for_good(jobs):
    job = jobs.submit()
    with jobs.standing_still(job, until=signal.SIGTERM):
        jobs.slurm.call("scancel", job)
    assert jobs.wait_for_end(job) == "CANCELLED"
    time.sleep(7)  # longer than a requeued job waits
    assert jobs.show(job, "JobState") == "CANCELLED"
    assert "requeued:" not in jobs.log(job)
    assert re.search(r"stopped; step \d+ is saved", jobs.log(job)), jobs.log(job)


def test_requeued_from_outside_it_saves_and_goes_on(jobs, undisturbed):
    job = jobs.submit()
    with jobs.standing_still(job, until=signal.SIGTERM):
        jobs.slurm.call("scontrol", "requeue", job)
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job)
    (saved,) = re.findall(r"stopped; step (\d+) is saved", jobs.log(job))
    assert f"going on from step {saved} " in jobs.log(job)
    assert "requeued:" not in jobs.log(job), "that is what the script says where it does it"
    assert jobs.show(job, "Restarts") == "1"
    assert jobs.losses() == undisturbed


def test_a_second_job_in_the_same_folder_is_refused(jobs, undisturbed):
    job = jobs.submit()
    with jobs.standing_still(job):
        second = jobs.submit()
        assert jobs.wait_for_end(second) == "FAILED"
    assert f"is in use by job {job}" in jobs.log(second)
    assert "not requeued" in jobs.log(second)
    assert jobs.wait_for_end(job) == "COMPLETED"
    assert jobs.losses() == undisturbed


def test_a_run_that_is_called_like_a_command(jobs, undisturbed):
    name = """it's "so"; $(touch hacked) `touch hacked` 50%j"""
    job = jobs.submit(folder=name)
    assert jobs.wait_for_end(job) == "COMPLETED", jobs.log(job, name)
    assert "finished" in jobs.log(job, name)
    assert jobs.losses(name) == undisturbed
    assert not list(jobs.place.glob("**/hacked"))


def test_a_partition_that_is_not_there(jobs):
    with pytest.raises(AssertionError) as refusal:
        jobs.submit("--partition", "hig")
    said = "dla-train: error: sbatch refused the job: invalid partition specified: hig"
    assert said in str(refusal.value)
    assert "Partitions are high, low (--partition)" in str(refusal.value)


def test_an_array_of_two_recipes(jobs, undisturbed):
    """One of them is warned; the other goes on undisturbed."""
    shutil.copy(jobs.recipe, jobs.place / "other.yaml")
    said = jobs.submit_as_told(*jobs.options("."), "--recipe", "other.yaml")
    array = re.search(r"submitted job (\d+), an array of 2 runs", said)[1]
    first, second = f"{array}_0", f"{array}_1"
    with jobs.standing_still(second, until=signal.SIGUSR1, folder="other"):
        jobs.slurm.call("scancel", "--signal=USR1", second)
    assert finished_after_a_requeue(jobs, second, "requeued: warned by SIGUSR1", folder="other")
    assert jobs.wait_for_end(first) == "COMPLETED", jobs.log(first, "micro")
    assert jobs.show(first, "Restarts") == "0"
    assert jobs.losses("micro") == jobs.losses("other") == undisturbed
