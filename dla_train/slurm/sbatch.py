"""Hands a script to Slurm's `sbatch`."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from dla_train.errors import RunError, UsageError


def require_sbatch() -> None:
    """Look for `sbatch` before anything is written.

    Raises:
        UsageError: it is not on PATH.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "there is no sbatch on PATH: jobs are submitted on a login node of a Slurm cluster (on many, after "
            "`module load slurm`). --dry-run writes the script without submitting it."
        )


def submit(command: Sequence[str]) -> str:
    """Run `sbatch`; returns the job's id.

    Raises:
        RunError: Slurm refused the job; the message is Slurm's.
    """
    # A job of its own: variables of a job that this one is submitted from would override its #SBATCH lines.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_JOB", "SBATCH_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(
            f"sbatch did not answer: {error}. Try again; `squeue --me` shows whether it took the job."
        ) from error
    if done.returncode != 0:
        lines = [line.removeprefix("sbatch: ") for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = "; ".join(line.removeprefix("error: ") for line in lines) or f"exit code {done.returncode}"
        raise RunError(f"sbatch refused the job: {reason}{_partitions() if 'partition' in reason else ''}")
    job = done.stdout.strip().partition(";")[0]  # `--parsable` answers ID or ID;CLUSTER
    if not re.fullmatch(r"\d+", job):
        raise RunError(f"sbatch answered {done.stdout.strip()!r} instead of a job id. `squeue --me` shows your jobs.")
    return job


def _partitions() -> str:
    """What there is to choose from, as the end of a message; nothing where Slurm does not say."""
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = sorted(set(done.stdout.split()))
    return f". Partitions are {', '.join(names)} (--partition)" if done.returncode == 0 and names else ""
