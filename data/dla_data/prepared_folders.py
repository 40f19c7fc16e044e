"""Tells files that a preparation made from files to read: a source may hold the folders of its own preparations."""

import json
from pathlib import Path

from dla_data.errors import DataError

REQUEST_NAME = "request.json"
SHARDS_NAME = "shards"

REQUEST_FORMAT = "dla-request"
"""What the key `format` says, which is the first one in the file."""

_REQUEST_BEGINS = json.dumps({"format": REQUEST_FORMAT}, indent=2).removesuffix("\n}").encode()


def is_request(path: Path) -> bool:
    """Whether `path` is the file by which a folder is known as that of a preparation, of whatever version.

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
        being_made: a folder that is one whatever it holds so far.
    """

    def __init__(self, being_made: Path | None = None) -> None:
        self._known: dict[Path, bool] = {} if being_made is None else {being_made.resolve(): True}

    def hold(self, file: Path) -> bool:
        """Whether `file` lies in one, however deep."""
        return self._is_in_one(file.parent.resolve())

    def _is_in_one(self, folder: Path) -> bool:
        if folder not in self._known:
            is_one = is_request(folder / REQUEST_NAME)
            self._known[folder] = is_one or (folder.parent != folder and self._is_in_one(folder.parent))
        return self._known[folder]
