"""Tells files that a preparation made from files to read: a source may hold the folders of its own preparations."""

from pathlib import Path

REQUEST_NAME = "request.json"
SHARDS_NAME = "shards"


class PreparedFolders:
    """Knows which files lie below a prepared folder.

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
            is_one = (folder / REQUEST_NAME).is_file() and (folder / SHARDS_NAME).is_dir()
            self._known[folder] = is_one or (folder.parent != folder and self._is_in_one(folder.parent))
        return self._known[folder]
