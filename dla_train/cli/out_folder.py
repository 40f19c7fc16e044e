"""`--out`: a folder for results, which must not overwrite earlier ones."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from dla_train.errors import UsageError


def a_folder(text: str) -> Path:
    """The type of an option that names a folder; refuses an empty name (an unset variable), which would mean the
    current one."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty; `.` is the current one")
    return Path(text)


def require_unused(out: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which a file would be overwritten; other files may lie there.

    Args:
        out: the folder, which need not exist. names: of the files that will be written.
    Raises:
        UsageError: says which of the files exist.
    """
    there = [name for name in names if os.path.exists(out / name)]
    if there:
        raise UsageError(
            f"--out {out} holds earlier results ({', '.join(there)}), which would be overwritten. Give another folder, "
            "or remove them."
        )
