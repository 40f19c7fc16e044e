"""Tells files made by a preparation from files to be read: a source may contain folders of earlier preparations."""

import json
from pathlib import Path

from dla_data.errors import DataError

REQUEST_NAME = "request.json"
SHARDS_NAME = "shards"

REQUEST_FORMAT = "dla-request"
"""The value of the key `format`, which comes first in the file."""

_REQUEST_BEGINS = json.dumps({"format": REQUEST_FORMAT}, indent=2).removesuffix("\n}").encode()


def is_request(path: Path) -> bool:
    """Whether `path` is the file that marks a folder as that of a preparation, of any version.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_REQUEST_BEGINS)) == _REQUEST_BEGINS
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Make it readable.") from error


class PreparedFolders:
    """Knows which files lie below a prepared folder, finished or not.

    Args:
        being_made: a folder that counts as prepared whatever it holds so far.
    """

    def __init__(self, being_made: Path | None = None) -> None:
        self._known: dict[Path, bool] = {} if being_made is None else {being_made.resolve(): True}

    def hold(self, file: Path) -> bool:
        """Whether `file` lies in a prepared folder, at any depth."""
        return self._is_in_one(file.parent.resolve())

    def _is_in_one(self, folder: Path) -> bool:
        if folder not in self._known:
            is_one = is_request(folder / REQUEST_NAME)
            self._known[folder] = is_one or (folder.parent != folder and self._is_in_one(folder.parent))
        return self._known[folder]
