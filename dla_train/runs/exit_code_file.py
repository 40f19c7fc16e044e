"""The run's own word to its batch script on how it ends.

`srun --kill-on-bad-exit` ends the slower processes once the first has left, and reports the highest exit code: 143 or
137 of a process that was on its way out, instead of the one that all agreed on. So the script names a file, rank 0
writes the code there while all are still present, and the script believes the file.
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
