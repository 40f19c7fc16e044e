"""The script of `dla-train submit` at work, with an `srun` and an `scontrol` of our own: who is requeued, and why."""

from datetime import datetime, timedelta

import pytest

from tests.cli.run_script import RUNNING, run_script

PREEMPTED = "JobState=RUNNING PreemptTime=2026-11-26T14:37:53"


@pytest.mark.parametrize(
    ("agreed", "code", "slurm", "reason", "is_failure"),
    [
        # All processes agreed on it, and rank 0 wrote it down; srun may report something else.
        (138, 138, RUNNING, "requeued: warned by SIGUSR1 (time limit, preemption or", False),
        (138, 143, RUNNING, "requeued: warned by SIGUSR1 (time limit, preemption or", False),
        (143, 137, RUNNING, "requeued: stopped by a signal (exit code 143); saved", False),
        (130, 130, RUNNING, "requeued: stopped by a signal (exit code 130); saved", False),
        # Nobody wrote anything.
        (None, 138, PREEMPTED, "requeued: preempted while there was nothing to save", False),
        (None, 143, PREEMPTED, "requeued: preempted while there was nothing to save", False),
        (None, 138, RUNNING, "requeued: warned by SIGUSR1 (time limit or scancel --signal=USR1) while", True),
        (None, 143, RUNNING, "requeued: a process was ended by SIGTERM with nothing saved", True),
        (None, 137, RUNNING, "requeued: a process failed with exit code 137", True),
        (None, 137, PREEMPTED, "requeued: a process failed with exit code 137", True),
        (None, 1, RUNNING, "requeued: a process failed with exit code 1", True),
        (None, 130, RUNNING, "requeued: a process failed with exit code 130", True),
        (124, 124, PREEMPTED, "requeued: preempted, and the grace time was too short", False),
        (124, 124, RUNNING, "requeued: the time limit came before a step was done and saved", True),
        (75, 137, RUNNING, "requeued: a process hung (exit code 75", True),
    ],
)
def test_who_is_requeued(cli, micro_recipe, tmp_path, agreed, code, slurm, reason, is_failure):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run", "--requeue-limit", 1)
    script = tmp_path / "runs/micro/slurm/job.sh"
    srun = f"exit {code}" if agreed is None else f'echo {agreed} >"$DLA_TRAIN_EXIT_CODE_FILE"; exit {code}'
    ran = run_script(script, tmp_path, srun, slurm)
    assert (ran.returncode, ran.stdout.count("REQUEUE 7")) == (agreed or code, 1), ran.stdout
    assert reason in ran.stdout
    assert ("(failure 1, requeued after up to 1)" in ran.stdout) == is_failure
    again = run_script(script, tmp_path, srun, slurm)
    assert ("REQUEUE" in again.stdout) != is_failure
    assert ("not requeued: failure 2, requeued after up to 1" in again.stdout) == is_failure


def test_shortly_before_the_time_limit_it_is_requeued_as_it_is(cli, micro_recipe, tmp_path):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    script = tmp_path / "runs/micro/slurm/job.sh"
    end = datetime.now() + timedelta(seconds=12)
    ran = run_script(script, tmp_path, "exec sleep 8", end=end.isoformat(timespec="seconds"))
    assert "requeued: the time limit came before a step was done and saved; see --warn-seconds (failure 1" in ran.stdout
    for end in ("N/A", ""):  # no limit, or no answer yet
        assert "finished" in run_script(script, tmp_path, "exec sleep 1", end=end).stdout


def test_the_clock_is_asked_again_if_it_does_not_answer(cli, micro_recipe, tmp_path):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    end = (datetime.now() + timedelta(seconds=12)).isoformat(timespec="seconds")
    squeue = f"[ -e asked ] && echo {end} || {{ touch asked; exit 1; }}"
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, "exec sleep 10", commands={"squeue": squeue})
    assert "requeued: the time limit came before a step was done and saved" in ran.stdout


@pytest.mark.parametrize("asked", ["show", "requeue"])
def test_slurm_is_asked_again_if_it_does_not_answer(cli, micro_recipe, tmp_path, asked):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    script = tmp_path / "runs/micro/slurm/job.sh"
    scontrol = (
        f'case "$*" in *{asked}*) echo x >>asked; [ $(wc -l <asked) -gt LATE ] || exit 1;; esac\n'
        f'[ "$1" = requeue ] && echo "REQUEUE $2" || echo "JobId=7 {RUNNING} Reason=None"'
    )
    commands = {"sleep": "", "scontrol": scontrol.replace("LATE", "5")}
    late = run_script(script, tmp_path, "exit 1", commands=commands).stdout
    said_first = late.index("to be requeued: a process failed with exit code 1")
    assert said_first < late.index("REQUEUE 7"), "after it has worked Slurm may end the script at any moment"
    assert "NOT be requeued" not in late

    (tmp_path / "asked").unlink()
    never = run_script(script, tmp_path, "exit 1", commands={**commands, "scontrol": scontrol.replace("LATE", "99")})
    said = {
        "show": "not requeued, because Slurm does not answer (exit code 1)",
        "requeue": "could NOT be requeued, because Slurm does not answer; submit the job again to go on",
    }
    assert said[asked] in never.stdout
    assert (tmp_path / "asked").read_text().count("x") == 6


def test_the_signal_that_comes_with_a_requeue_ends_nothing_before_that_is_done(cli, micro_recipe, tmp_path):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    signals = f'[ "$1" = requeue ] && {{ echo x >>asked; kill -TERM $PPID $$; exit 0; }}; echo "{RUNNING}"'
    commands = {"sleep": "", "scontrol": signals}
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, "exit 1", commands=commands)
    assert "to be requeued: a process failed with exit code 1" in ran.stdout
    assert "NOT be requeued" not in ran.stdout
    assert (tmp_path / "asked").read_text() == "x\n"


def test_what_an_earlier_start_wrote_is_forgotten(cli, micro_recipe, tmp_path):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    script = tmp_path / "runs/micro/slurm/job.sh"
    run_script(script, tmp_path, 'echo 138 >"$DLA_TRAIN_EXIT_CODE_FILE"; exit 138')
    assert "a process failed with exit code 137 (failure 1" in run_script(script, tmp_path, "exit 137").stdout


@pytest.mark.parametrize(
    ("code", "slurm", "said"),
    [
        (0, RUNNING, "finished"),
        (2, RUNNING, "refused: recipe, data or folder are wrong (see above); not requeued"),
        (143, "JobState=COMPLETING PreemptTime=None", "ended from outside"),
        (137, "JobState=COMPLETING PreemptTime=None", "ended from outside"),
        (
            137,
            "slurm_load_jobs error: Unable to contact",
            "not requeued, because Slurm does not answer (exit code 137)",
        ),
    ],
)
def test_who_is_not_requeued(cli, micro_recipe, tmp_path, code, slurm, said):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    srun = f"{'echo 2 >$DLA_TRAIN_EXIT_CODE_FILE; ' if code == 2 else ''}exit {code}"
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, srun, slurm, commands={"sleep": ""})
    assert (ran.returncode, "REQUEUE" in ran.stdout) == (code, False)
    assert said in ran.stdout
    assert not list(tmp_path.glob("runs/micro/slurm/failures-*"))


@pytest.mark.parametrize(("mine", "restarts"), [("1", 2), (None, 1), ("2", 10)])
def test_a_start_whose_node_was_given_up_for_lost_leaves_the_next_one_alone(
    cli, micro_recipe, tmp_path, mine, restarts
):
    """It ends because the run folder was taken over; a requeue would end the start that did so."""
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    script = tmp_path / "runs/micro/slurm/job.sh"
    slurm = f"{RUNNING} Requeue=1 Restarts={restarts} BatchFlag=1"
    variables = {} if mine is None else {"SLURM_RESTART_COUNT": mine}
    ran = run_script(script, tmp_path, "exit 1", slurm, variables)
    assert (ran.returncode, "REQUEUE" in ran.stdout) == (1, False)
    assert "Slurm has begun this job anew meanwhile (exit code 1); not requeued by this script" in ran.stdout
    assert not list(tmp_path.glob("runs/micro/slurm/failures-*"))
    assert "REQUEUE 7" in run_script(script, tmp_path, "exit 1", slurm, {"SLURM_RESTART_COUNT": str(restarts)}).stdout


def test_what_a_lost_start_writes_of_its_end_is_not_the_end_of_the_next(cli, micro_recipe, tmp_path):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    other = tmp_path / "runs/micro/slurm/exit-code-71-0"
    other.write_text("138")
    script = tmp_path / "runs/micro/slurm/job.sh"
    srun = f'echo 2 >"{script.parent}/exit-code-7-0"; exit 1'
    ran = run_script(script, tmp_path, srun, variables={"SLURM_RESTART_COUNT": "1"})
    assert "requeued: a process failed with exit code 1" in ran.stdout
    assert other.exists(), "of another job"


def test_a_2_that_the_run_does_not_know_of_is_a_failure(cli, micro_recipe, tmp_path):
    """Slurm's own, for one, where the interpreter is not there yet."""
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, "exit 2")
    assert "REQUEUE 7" in ran.stdout
    assert "a process failed with exit code 2 (failure 1" in ran.stdout


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_to_the_script_reaches_the_processes(cli, micro_recipe, tmp_path, name):
    """By way of Slurm: srun answers SIGTERM by killing them all."""
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    srun = f"kill -{name} $PPID; for i in $(seq 100); do sleep 0.1; [ ! -e told ] || exit 138; done"
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, srun)
    assert ran.returncode == 138, ran.stdout + ran.stderr
    assert (tmp_path / "told").read_text() == f"--signal={name} 7\n"
