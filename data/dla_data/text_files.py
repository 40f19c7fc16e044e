"""Which files of a directory are plain text, whoever reads it, and what to say of the files that are none."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from dla_data.counted import counted

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")

_SHOWN = 3


def said_of_left_out(names: Sequence[str], read: int) -> str:
    """`4 files read, 3 of other kinds left out (2 .html, 1 without a suffix): a.html, b.html, LICENSE`.

    Args:
        names: of the files that are left out, at least one. read: how many are not.
    """
    kinds = Counter(PurePath(name).suffix or "without a suffix" for name in names)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_SHOWN))
    if (more := len(kinds) - _SHOWN) > 0:
        listed += f" and {counted(more, 'more kind')}"
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{counted(read, 'file')} read, {len(names):,} of other kinds left out ({listed}): {shown}"
