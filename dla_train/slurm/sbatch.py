"""Submits a script with Slurm's `sbatch`."""

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


_OF_THE_SITE = ("account", "partition", "qos", "constraint", "reservation")


def submit(command: Sequence[str], script: str) -> str:
    """Run `sbatch`; returns the job's id.

    Args:
        command: the `sbatch` command line. script: the text that it submits.

    Raises:
        RunError: Slurm refused the job; the message is Slurm's.
    """
    environment = _environment(script)
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


def _environment(script: str) -> dict[str, str]:
    """The environment for `sbatch`. It lacks the `SLURM_...` variables of a job that this may run in, which the new job
    would take for its own, and `SBATCH_...`, which would override #SBATCH lines. Kept are the site's defaults that
    users set for all their jobs (account, partition and the like), if the script sets no value of its own."""
    defaults = {f"SBATCH_{name.upper()}" for name in _OF_THE_SITE if f"#SBATCH --{name}=" not in script}
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", *defaults}
    return {
        name: value for name, value in os.environ.items() if name in kept or not name.startswith(("SLURM_", "SBATCH_"))
    }


def _partitions() -> str:
    """The existing partitions, as the end of a message; empty if Slurm does not tell."""
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = sorted(set(done.stdout.split()))
    return f". Partitions are {', '.join(names)} (--partition)" if done.returncode == 0 and names else ""
