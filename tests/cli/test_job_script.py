"""The batch script of `dla-train submit`, run by bash with stand-ins for srun and scontrol."""

import os
import subprocess

import pytest

from dla_train.slurm.script import fill, template_text


@pytest.fixture
def run_job(tmp_path):
    """Run the script once with an `srun` of the given bash lines; returns exit code and what was said."""
    state = tmp_path / "state of it"
    values = {
        "NAME": "run",
        "SUBMIT": "sbatch job.sh",
        "DIRECTIVES": "#SBATCH --nodes=1",
        "WORKING_DIRECTORY": f"'{tmp_path}'",
        "COMMAND": "dla-train fit",
        "STATE_FOLDER": f"'{state}'",
        "REQUEUE_LIMIT": "3",
    }
    script = tmp_path / "job.sh"
    script.write_text(fill(template_text(None), values, "job.sh"))
    tools = tmp_path / "bin"
    tools.mkdir()

    def run(srun):
        answers = 'case "$*" in *show*) echo JobState=RUNNING ;; *) echo "scontrol $*" ;; esac'
        for name, body in {"srun": srun, "scontrol": answers}.items():
            (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (tools / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_run_s_own_word_counts_more_than_srun_s_exit_code(run_job):
    code, said = run_job('echo 138 >"$DLA_TRAIN_EXIT_CODE_FILE"; exit 143')
    assert code == 138
    assert "requeued: warned by SIGUSR1" in said
    assert "scontrol requeue 7" in said


def test_the_word_of_an_earlier_start_is_forgotten(run_job):
    run_job('echo 138 >"$DLA_TRAIN_EXIT_CODE_FILE"; exit 143')
    code, said = run_job("exit 137")
    assert code == 137
    assert "requeued: a process failed with exit code 137 (failure 1" in said


@pytest.mark.parametrize(("code", "words"), [(0, "finished"), (2, "not requeued")])
def test_what_is_not_requeued(run_job, code, words):
    found, said = run_job(f"exit {code}")
    assert found == code
    assert words in said
    assert "scontrol requeue" not in said
