"""How another process of dla-train is started."""

import os
import sys


def this_program() -> list[str]:
    """Python and dla-train; without the modules of the current folder, unless this process has them, too.

    `python -m` looks for modules there first, the installed command does not: no `queue.py` of a user may come between.
    """
    has_folder = bool(sys.path) and sys.path[0] in ("", os.getcwd())
    return [sys.executable, *([] if has_folder else ["-P"]), "-m", "dla_train"]
