"""`--out`: a folder for results, which must not take the place of earlier ones."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from dla_train.errors import UsageError


def a_folder(text: str) -> Path:
    """The type of an option that names a folder; an empty name, as of a variable that is not set, would be this one."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty; `.` is the current one")
    return Path(text)


def require_unused(out: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which a file would be overwritten; what else lies there may stay.

    Args:
        out: may be there or not. names: of the files that will be written.
    Raises:
        UsageError: says which file is there.
    """
    there = [name for name in names if os.path.exists(out / name)]
    if there:
        raise UsageError(
            f"--out {out} holds earlier results ({', '.join(there)}), which would be overwritten. Give another folder, "
            "or remove them."
        )
