"""`dla-train submit`: what reaches sbatch, what is refused before it, and that a name stays text."""

import json
import os
import re
import sys

import pytest

from tests.cli.run_script import run_script

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
