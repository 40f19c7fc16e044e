"""`dla-train submit`: what reaches sbatch, what is refused before it, and that a name stays text."""

import json
import os
import re
import subprocess
import sys

import pytest

SBATCH = """\
#!{python}
import json, os, sys
open({record!r}, "w").write(json.dumps(sys.argv[1:]))
sys.stderr.write(os.environ.get("SAY", ""))
print("4711;cluster")
sys.exit(bool(os.environ.get("SAY")))
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A fake `sbatch` on PATH; returns what it was called with, None if it was not."""
    record, folder = tmp_path / "sbatch.json", tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(python=sys.executable, record=str(record)))
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: json.loads(record.read_text()) if record.exists() else None


def test_submits_a_script_and_says_how_to_follow(cli, sbatch, micro_recipe, tmp_path):
    done = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--time", "1-2", "--partition", "low")
    assert done.code == 0, done.err
    folder = tmp_path / "runs/micro/slurm"
    assert sbatch() == ["--parsable", f"--output={folder}/job-%j.log", f"{folder}/job.sh"]
    assert "submitted job 4711" in done.out
    assert f"tail -F {folder}/job-4711.log" in done.out
    lines = (folder / "job.sh").read_text().splitlines()
    for line in ("job-name=dla-micro", "time=1-2", "partition=low", "signal=USR1@120", "requeue", "open-mode=append"):
        assert f"#SBATCH --{line}" in lines
    assert not any("gpus-per-node" in line for line in lines)


def test_several_recipes_are_an_array(cli, sbatch, micro_recipe, tmp_path):
    other = tmp_path / "an other.yaml"
    other.write_text(micro_recipe.read_text())
    submit = ["submit", "--gpus-per-node", 0, "--recipe", micro_recipe, "--recipe"]
    done = cli(*submit, other, "--run-dir", "all of them")
    assert done.code == 0, done.err
    folder = tmp_path / "all of them"
    script = folder / "micro/slurm/array.sh"
    assert sbatch()[1:] == [f"--output={script.parent}/array-%A.log", str(script)]
    assert "#SBATCH --array=0-1\n" in script.read_text()
    assert f"tail -F '{folder}/an other/slurm/job-4711_1.log'" in done.out
    variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    ran = run_script(script, tmp_path, 'printf "<%s>\\n" "$@"; exit 138', variables=variables)
    log = (folder / "an other/slurm/job-7_1.log").read_text()
    assert f"<--run-dir={folder}/an other>\n" in log
    assert "REQUEUE 7_1\n" in log, "not the whole array"
    assert (ran.returncode, ran.stdout) == (138, "")
    assert f"two of the recipes would train in {tmp_path}/runs/micro" in cli(*submit, micro_recipe).err


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "gpu")])
def test_the_device_that_was_asked_for_is_insisted_on(cli, micro_recipe, gpus, device):
    auto = "training.accelerator=auto"
    done = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", gpus, "--dry-run", auto)
    assert done.code == 0, done.err
    assert ("#SBATCH --gpus-per-node=1\n" in done.out) == (gpus == 1)
    assert f"{auto} training.accelerator={device})" in done.out


@pytest.mark.parametrize(
    "name", ["a b", "q\"'q", "x;touch hacked", "$(touch hacked)", "`touch hacked`", "50%j", "@COMMAND@"]
)
def test_whatever_the_run_is_called_it_stays_text(cli, sbatch, micro_recipe, tmp_path, name):
    folder = tmp_path / name
    done = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--run-dir", folder, f"description={name}")
    assert done.code == 0, done.err
    assert sbatch()[1] == "--output=" + f"{folder}/slurm/".replace("%", "%%") + "job-%j.log"
    ran = run_script(folder / "slurm/job.sh", tmp_path, 'printf "<%s>\\n" "$@"')
    assert f"<--run-dir={folder}>\n" in ran.stdout
    assert f"<description={name}>\n" in ran.stdout
    assert not (tmp_path / "hacked").exists()
    assert re.search(r"^#SBATCH --job-name=dla-[\w.-]*$", (folder / "slurm/job.sh").read_text(), re.M)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nodes", "0"], "--nodes is 0; it must be at least 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node is -1; it must be at least 0"),
        (
            ["--nodes", "2"],
            "makes 2 processes, and the recipe's strategy is single. Add strategy=ddp, or use --nodes 1",
        ),
        (["--nodes", "2", "strategy={kind: ddp, nodes: 3}"], "strategy.nodes: it is 3, but the job has 2."),
        (["--nodes", "3", "strategy=ddp"], "training.global_batch: it is 4, and --nodes 3 with --gpus-per-node"),
        (["--time", "4h"], "--time is '4h'; it must be MINUTES"),
        (["--time", "2"], "--time is 2 (120 s), but the warning comes 120 s before"),
        (["--partition", "a b"], "--partition is 'a b'; it must be letters"),
        (["--gpus-per-node", "1"], "it is cpu, but --gpus-per-node is 1"),
        (["training.steps=0"], "on the command line: training.steps is 0"),
        (["treining.steps=1"], "treining"),
        (["--run-dir", "a\nb"], "printable characters only"),
        (["--run-dir", "a\\b"], "has a backslash"),
        (["--template", "none.sh"], "cannot read the template none.sh"),
    ],
)
def test_refused_before_sbatch_is_asked(cli, sbatch, micro_recipe, tmp_path, arguments, expected):
    done = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, *arguments)
    assert done.code == 2
    assert expected in done.err
    assert sbatch() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_no_sbatch(cli, micro_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0)
    assert (done.code, list(tmp_path.iterdir())) == (2, [])
    assert "there is no sbatch on PATH" in done.err


def test_what_sbatch_refuses_is_said(cli, sbatch, micro_recipe, monkeypatch):
    said = "sbatch: error: invalid partition specified: hig\nsbatch: error: Batch job submission failed: Invalid name\n"
    monkeypatch.setenv("SAY", said)
    done = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--partition", "hig")
    assert done.code == 1
    reason = "invalid partition specified: hig; Batch job submission failed: Invalid name"
    assert done.err == f"dla-train: error: sbatch refused the job: {reason}\n"


def test_fit_starts_in_a_folder_that_holds_a_script_only(cli, micro_recipe):
    submit = cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    assert submit.code == 0, submit.err
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=4").code == 0


def test_a_template_of_one_s_own(cli, micro_recipe, tmp_path):
    (tmp_path / "own.sh").write_text("#!/bin/bash\n@DIRECTIVES@\nmodule load cuda\nsrun @COMMAND@\n")
    (tmp_path / "bad.sh").write_text("@DIRECTIVES@ @COMAND@")
    submit = ["submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run", "--template"]
    assert "module load cuda\nsrun /" in cli(*submit, "own.sh").out
    assert "bad.sh has @COMAND@; the placeholders are" in cli(*submit, "bad.sh").err


@pytest.mark.parametrize(
    ("code", "state", "starts", "said"),
    [
        (0, "RUNNING", 0, "finished"),
        (2, "RUNNING", 0, "refused"),
        (138, "RUNNING", 1, "requeued: warned by SIGUSR1"),
        (143, "RUNNING", 1, "requeued: stopped by a signal"),
        (143, "COMPLETING", 0, "ended from outside"),
        (137, "RUNNING", 1, "requeued: a process failed with exit code 137 (failure 1"),
    ],
)
def test_who_is_requeued(cli, micro_recipe, tmp_path, code, state, starts, said):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run", "--requeue-limit", 1)
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, f"exit {code}", state)
    assert (ran.returncode, ran.stdout.count("REQUEUE 7")) == (code, starts), ran.stdout
    assert said in ran.stdout
    if code == 137:  # the limit is 1
        ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, f"exit {code}", state)
        assert "REQUEUE" not in ran.stdout
        assert "not requeued: failure 2" in ran.stdout


def test_a_signal_to_the_script_reaches_the_processes(cli, micro_recipe, tmp_path):
    cli("submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--dry-run")
    srun = "trap 'exit 138' USR1; kill -USR1 $PPID; for i in $(seq 100); do sleep 0.1; done"
    ran = run_script(tmp_path / "runs/micro/slurm/job.sh", tmp_path, srun)
    assert (ran.returncode, "REQUEUE 7" in ran.stdout) == (138, True), ran.stdout + ran.stderr


def run_script(script, place, srun, state="RUNNING", variables=None):
    """Run the batch script with `srun` and `scontrol` of our own, as job 7."""
    folder = place / "fake"
    folder.mkdir(exist_ok=True)
    scontrol = f'[ "$1" = requeue ] && echo "REQUEUE $2" || echo "JobId=7 JobState={state} Reason=None"'
    for name, text in {"srun": srun, "scontrol": scontrol}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", **(variables or {})}
    return subprocess.run(
        ["bash", str(script)], cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
