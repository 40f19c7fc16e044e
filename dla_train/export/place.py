"""Where an exported model may be written."""

from pathlib import Path

from dla_train.errors import UsageError


def require_empty(folder: Path) -> None:
    """Refuse a place that is not a new or empty folder.

    Raises:
        UsageError: says what is there.
    """
    if not folder.name or folder.resolve() == Path.cwd():  # a folder that is renamed into place needs a name
        raise UsageError(f"{folder} is no new folder. Give --to the name of one, such as {folder / 'model'}.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty. Give --to a new folder, or empty this one.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Give --to a new folder.")
