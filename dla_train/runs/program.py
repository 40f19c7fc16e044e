"""The command that starts another process of dla-train."""

import os
import sys


def this_program() -> list[str]:
    """The command of dla-train; without modules of the current folder, unless this process can import those, too.

    `python -m` searches the current folder first, which the installed command does not: a user's `queue.py` there must
    not be imported by mistake.
    """
    has_folder = bool(sys.path) and sys.path[0] in ("", os.getcwd())
    return [sys.executable, *([] if has_folder else ["-P"]), "-m", "dla_train"]
