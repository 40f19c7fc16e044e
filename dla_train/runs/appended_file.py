"""A file of the run folder that is appended to piece by piece; each piece is visible at once."""

import os
from pathlib import Path

from dla_train.errors import RunError


class AppendedFile:
    """Appends text to a file that exists.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, text: str) -> None:
        """Write all of `text`, in one system call if the operating system accepts it whole.

        Raises:
            RunError: it refuses (no space); part of the text may have been written.
        """
        left = text.encode()
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Bring everything to disk.

        Raises:
            RunError: the operating system refuses.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} could not be written: {error.strerror}. Make room or permission there, then go on with "
            "--resume auto."
        )
