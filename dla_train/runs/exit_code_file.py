"""How a run tells its batch script why it ends.

srun's exit code is the highest of all processes, which does not tell why they ended: 143 may come from a process that
was told to stop, or from one that srun ended because another had failed. So the script names a file. What the processes
agree on (told to stop, refused), or what one of them knows for sure (it hangs), is written there before any of them
exits. The script trusts the file; without it, the script takes an end by a signal for a failure, unless Slurm reports
that it preempts the job.
"""

import os
from pathlib import Path

VARIABLE = "DLA_TRAIN_EXIT_CODE_FILE"


def announce_exit(code: int) -> None:
    """Write `code` where the batch script looks for it; without a batch script, do nothing.

    Raises:
        OSError: the file cannot be written.
    """
    if path := os.environ.get(VARIABLE):
        Path(path).write_text(f"{code}\n", encoding="utf-8")
