"""The files that a directory or a pattern means; a place that cannot be looked into is an error, never just empty."""

import glob
import logging
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

from dla_data.errors import DataError

_LOGGER = logging.getLogger("dla_data")


def files_below(root: Path) -> list[Path]:
    """Everything below `root` that is no directory, sorted by path; hidden names (`.git`) are left out.

    Links to directories are followed unless they lead back to a directory that contains them. A directory that can be
    reached in several ways is read once: in its own place, or through the first link to it.

    Raises:
        DataError: a directory cannot be listed.
    """
    found: list[Path] = []
    seen: set[str] = set()
    starts = [root]
    for start in starts:  # links come behind all that lies below `root` itself
        for folder, subfolders, files in os.walk(start, onerror=_refuse):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            starts += [link for name in subfolders if _leads_elsewhere(link := Path(folder, name), real)]
            found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def files_matching(pattern: str) -> list[Path]:
    """Everything that matches and is no directory, sorted; a file that several paths reach is listed by the shortest.

    Raises:
        DataError: a directory that the pattern looks into cannot be listed.
    """
    for folder, is_listed in _looked_into(pattern):
        try:
            os.stat(os.path.join(folder, "."))  # refused where nothing in it can be looked at
            if is_listed:
                os.scandir(folder or ".").close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            _refuse(error)
    paths = [Path(path) for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path)]
    paths.sort(key=lambda path: (len(path.parts), path), reverse=True)  # of equal keys, the last stays
    return sorted({os.path.join(os.path.realpath(path.parent), path.name): path for path in paths}.values())


def is_there(path: Path) -> bool:
    """Whether `path` exists.

    Raises:
        DataError: it lies in a directory that cannot be looked into.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def is_data_file(path: Path) -> bool:
    """Whether `path` is a file with content, and no pipe or socket.

    Raises:
        DataError: that cannot be found out, or it is a link to nothing.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror}. Make it readable or leave it out.")


def _leads_elsewhere(folder: Path, real_parent: str) -> bool:
    """Whether `folder` is a link that does not lead back to a directory that contains it."""
    if not folder.is_symlink():
        return False
    if Path(real_parent).is_relative_to(target := os.path.realpath(folder)):
        _say_not_followed(folder, target)
        return False
    return True


@cache  # a run looks at its text several times
def _say_not_followed(folder: Path, target: str) -> None:
    _LOGGER.warning("%s leads back to %s, in which it lies: it is not followed", folder, target)


def _looked_into(pattern: str) -> Iterator[tuple[str, bool]]:
    """The directories that a pattern looks into, and for each whether it lists them (to match a wildcard)."""
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    for place, part in enumerate(parts[first:], first):
        above = os.path.join(*parts[: place + 1 if part == "**" else place], "")
        for folder in glob.iglob(above, recursive=True) if glob.has_magic(above) else [above]:
            yield folder, glob.has_magic(part)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {error.filename}: {error.strerror}. Make it readable or leave it out.") from error
