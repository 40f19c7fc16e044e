"""What a job that is submitted sees of the environment that `dla-train submit` ran in."""

import sys

from dla_train.runs.program import this_program
from dla_train.slurm.sbatch import _environment


def test_nothing_of_another_job_but_what_the_site_sets(monkeypatch):
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SBATCH_ACCOUNT", "proj")
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    seen = _environment("#!/bin/bash\n#SBATCH --partition=low\n")
    assert {name: value for name, value in seen.items() if name.startswith(("SLURM_", "SBATCH_"))} == {
        "SBATCH_ACCOUNT": "proj",
        "SLURM_CONF": "/etc/slurm.conf",
    }


def test_modules_of_the_current_folder_come_in_only_where_they_are(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path])
    assert this_program() == [sys.executable, "-P", "-m", "dla_train"]
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert this_program() == [sys.executable, "-m", "dla_train"]
