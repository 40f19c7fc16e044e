"""The run's own word to its batch script on how it ends.

srun's exit code is the highest of all processes, which does not tell why they ended: 143 may be a process that was told
to stop, and one that srun ended because another had failed. So the script names a file, and what the processes agree
on (told to stop, refused) or what one of them knows for sure (it hangs) is written there before any of them leaves. The
script believes the file; without one, it takes an end by a signal for a failure, unless Slurm says that it preempts.
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
