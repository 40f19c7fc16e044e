"""Kinds of files by name, and what to say of those that are read and those that are not."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from dla_data.counted import counted
from dla_data.readers.blocks import COMPRESSED_SUFFIXES

_SHOWN = 3


def kind_of(path: PurePath) -> str:
    """The suffix that says what the file holds, without that of its compression."""
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def said_of_files(read: Sequence[str], left_out: Sequence[str]) -> str | None:
    """`4 files read (3 .txt, 1 .md: README.md), 3 of other kinds left out (2 .html, 1 without a suffix): a.html, ...`.

    Args:
        read, left_out: names of the files that are read, at least one, and of those that are not.
    Returns:
        None if all are read and of one kind, as a user expects.
    """
    kinds = _kinds(read)
    if len(kinds) == 1 and not left_out:
        return None
    said = f"{counted(len(read), 'file')} read"
    if len(kinds) > 1:
        (most, _), *_ = kinds.most_common(1)
        said += f" ({_listed(kinds)}: {_first([name for name in read if _kind(name) != most])})"
    if left_out:
        said += f", {len(left_out):,} of other kinds left out ({_listed(_kinds(left_out))}): {_first(left_out)}"
    return said


def _kinds(names: Sequence[str]) -> Counter[str]:
    return Counter(map(_kind, names))


def _kind(name: str) -> str:
    path = PurePath(name)
    return kind_of(path) + (path.suffix if path.suffix in COMPRESSED_SUFFIXES else "") or "without a suffix"


def _listed(kinds: Counter[str]) -> str:
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_SHOWN))
    if (more := len(kinds) - _SHOWN) > 0:
        listed += f" and {counted(more, 'more kind')}"
    return listed


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
