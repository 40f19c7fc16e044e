"""`dla-train submit`: what reaches sbatch, what is refused before it, and that a name stays text."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta

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


def test_a_job_branches_off_once_and_then_goes_on_with_its_own(cli, sbatch, micro_recipe, tmp_path):
    assert cli("fit", "--recipe", micro_recipe, "training.steps=4", "--run-dir", "base").code == 0
    submit = ["submit", "--recipe", micro_recipe, "--gpus-per-node", 0, "--run-dir", "branch", "--resume"]
    done = cli(*submit, "base", "optimizer.lr=1e-3")
    assert done.code == 0, done.err
    ran = run_script(tmp_path / "branch/slurm/job.sh", tmp_path, 'printf "<%s>\\n" "$@"; exit 138')
    assert "<--resume>\n<auto:base>\n<optimizer.lr=1e-3>\n" in ran.stdout + ran.stderr
    for resume, setting, said in [
        ("nowhere", "seed=0", "there is no checkpoint at nowhere"),
        ("base", "model.hidden=32", "a checkpoint of another architecture: model.hidden 16 there and 32 here"),
        ("base", "training.steps=4", "it is 4, and base/checkpoints/step-00000004 has all of them"),
    ]:
        refused = cli(*submit, resume, setting, "--run-dir", "other")
        assert refused.code == 2
        assert said in refused.err
    refused = cli(*submit[:5], "initial_weights=nowhere", "--run-dir", "other")
    assert refused.code == 2
    assert "initial_weights: there is no folder nowhere." in refused.err
    assert not (tmp_path / "other").exists()


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
        (["--nodes", "3", "strategy=ddp"], "it is 4, which the 3 processes of the job cannot share out"),
        (
            ["--nodes", "4", "training.micro_batch=1", "strategy={kind: fsdp, replicas: 3}"],
            "but the 4 processes of the job",
        ),
        (["strategy={kind: fsdp, replicas: 2}"], "it is 2, but the 1 process of the job cannot form 2 groups"),
        (["--time", "4h"], "--time is '4h'; it must be MINUTES"),
        (["--nodes", "4", "strategy=ddp"], "in micro-batches of 2; training.micro_batch=1 would fit."),
        (["--warn-seconds", "29"], "--warn-seconds is 29; it must be at least 30"),
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


SPANS = "groups that share windows span nodes, and exchange over the network in every layer."


@pytest.mark.parametrize(
    ("nodes", "gpus", "size", "said"),
    [
        (2, 4, 8, f"is 8, and a node has 4 processes: some {SPANS} A divisor of 4 keeps them on their nodes."),
        (2, 6, 4, f"is 4, and a node has 6 processes: some {SPANS} A divisor of 6 keeps them on their nodes."),
        (2, 0, 2, f"is 2, and a node has 1 process: some {SPANS}\n"),
        (1, 3, 3, "is 3, and a mixer has 8 heads: each process takes the time of 3, as if there were 9. A divisor of"),
        (2, 4, 4, ""),
        (1, 8, 8, ""),
    ],
)
def test_what_slows_windows_down_that_are_shared_is_said(cli, sbatch, micro_recipe, nodes, gpus, size, said):
    settings = ["model.mixer.heads=8", "training.micro_batch=1", "training.global_batch=12"]
    strategy = f"strategy={{kind: ddp, context_parallel: {size}}}"
    request = ["--nodes", nodes, "--gpus-per-node", gpus, f"training.accelerator={'gpu' if gpus else 'cpu'}"]
    done = cli("submit", "--recipe", micro_recipe, *request, strategy, *settings)
    assert done.code == 0, done.err
    assert sbatch() is not None
    assert (f"warning: strategy.context_parallel {said}" if said else "") in done.err
    assert bool(done.err) == bool(said)


def test_what_slows_several_recipes_down_is_said_once_with_their_names(cli, sbatch, micro_recipe, tmp_path):
    recipes = []
    for name, heads in (("even", 8), ("odd", 3), ("also-odd", 3)):
        text = micro_recipe.read_text().replace("heads: 2", f"heads: {heads}").replace("hidden: 16", "hidden: 12")
        (tmp_path / f"{name}.yaml").write_text(text)
        recipes += ["--recipe", f"{name}.yaml"]
    strategy = ["strategy={kind: ddp, context_parallel: 4}", "training.micro_batch=1", "training.accelerator=gpu"]
    done = cli("submit", *recipes, "--nodes", 2, "--gpus-per-node", 2, *strategy)
    assert done.code == 0, done.err
    assert [line.split(" is 4, and ")[0] for line in done.err.splitlines()] == [
        "warning: even, odd, also-odd: strategy.context_parallel",
        "warning: odd, also-odd: strategy.context_parallel",
    ]


def test_data_that_is_not_there_yet_is_said(cli, sbatch):
    asked = ["submit", "--recipe", "gdn-dla-130m", "--gpus-per-node", 1]
    done = cli(*asked)
    assert done.code == 0, done.err
    assert sbatch() is not None
    assert re.search(
        r"^warning: .*gdn-dla-130m.yaml:\d+: data.path: no prepared tokens at tokens/long-data-collections: .* "
        r"As it is, the job will be refused when it starts\.$",
        done.err,
        re.MULTILINE,
    )


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
    assert done.err.startswith(f"dla-train: error: sbatch refused the job: {reason}")  # and what there is, on a cluster


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


RUNNING = "JobState=RUNNING PreemptTime=None"
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


def run_script(script, place, srun, slurm=RUNNING, variables=None, end="N/A", commands=None):
    """Run the batch script with stand-ins for Slurm's commands, as job 7; `slurm` is what it says of the job, and
    `commands` has other stand-ins by name."""
    folder = place / "fake"
    folder.mkdir(exist_ok=True)
    scontrol = f'[ "$1" = requeue ] && echo "REQUEUE $2" || echo "JobId=7 {slurm} Reason=None"'
    for name, text in {
        "srun": srun,
        "scontrol": scontrol,
        "scancel": 'echo "$@" >told',
        "squeue": f"echo '{end}'",
        **(commands or {}),
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", **(variables or {})}
    return subprocess.run(
        ["bash", str(script)], cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
