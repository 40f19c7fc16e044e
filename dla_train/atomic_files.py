"""Files that appear complete or not at all, even if the machine loses power."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file holding `text` (UTF-8); a reader sees the old file or the new one, nothing between.

    Raises:
        OSError: the file cannot be written; the old one is untouched and nothing else is left behind.
    """
    unfinished = path.with_name(f".{path.name}.incoming")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's list of entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
