"""A script of `dla-train submit`, run here with an `srun`, an `scontrol` and other commands of our own."""

import os
import subprocess

RUNNING = "JobState=RUNNING PreemptTime=None"


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
