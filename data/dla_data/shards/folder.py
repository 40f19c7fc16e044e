"""The folder of a preparation: who may write it, how it begins, and how it is removed if no shard was finished.

`request.json` is binding once there is a whole shard. Before that nothing depends on it, and any preparation may begin
the folder anew. The file is written first and removed last, so that a folder left by a killed process can be recognized
as one of a preparation.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenizers import Tokenizer

from dla_data.atomic import remove_leftovers, write_file
from dla_data.cache import exclusive, lock_of
from dla_data.errors import DataError
from dla_data.prepared_folders import REQUEST_NAME, SHARDS_NAME, is_request
from dla_data.shards.prepared_manifest import MANIFEST_NAME
from dla_data.shards.request import Request
from dla_data.shards.shard import shard_name

TOKENIZER_NAME = "tokenizer.json"


@contextmanager
def claimed(out: Path) -> Iterator[bool]:
    """Make `out` and hold the lock on writing it; another process that prepares it waits.

    Yields whether the lock is really held (some network file systems have none). If it is, and no shard was finished,
    all that was made is removed at the end.

    Raises:
        DataError: it cannot be written, or holds something that no preparation made.
    """
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    target = out / "prepare"
    with exclusive(target, "the output directory", "choose another one") as locked:
        others = _things_of_others(out)
        try:
            if others:
                raise DataError(
                    f"the output directory {out} holds other things ({', '.join(others[:3])}). Choose a new or an "
                    "empty one."
                )
            yield locked
        finally:
            if locked and (others or not is_begun(out)):
                with suppress(OSError):  # files of others that appeared meanwhile stay
                    if not others:
                        _clear(out)
                    lock_of(target).unlink()
                    for folder in made:
                        folder.rmdir()


def is_begun(out: Path) -> bool:
    """Whether `out` has a whole shard, so that only the same request may continue it."""
    return (out / SHARDS_NAME / shard_name(0)).exists()


def begin(out: Path, request: Request, tokenizer: Tokenizer) -> None:
    """Write the request and the tokenizer, to which the shards of `out` belong.

    Raises:
        DataError: the operating system refuses to write.
    """
    (out / MANIFEST_NAME).unlink(missing_ok=True)  # left over from shards that somebody removed
    request.write(out)
    write_file(out / TOKENIZER_NAME, tokenizer.to_str(pretty=True) + "\n")


def _things_of_others(out: Path) -> list[str]:
    """The files in `out`, unless a preparation made the folder."""
    try:
        found = sorted(name for name in os.listdir(out) if not name.startswith("."))
    except OSError as error:
        raise DataError(
            f"the output directory {out} cannot be read: {error.strerror}. Make it readable, or choose another one."
        ) from error
    return [] if is_request(out / REQUEST_NAME) else found


def _clear(out: Path) -> None:
    shards = out / SHARDS_NAME
    remove_leftovers(shards / shard_name(0))
    if shards.exists():
        shards.rmdir()
    for name in (MANIFEST_NAME, TOKENIZER_NAME, REQUEST_NAME):
        (out / name).unlink(missing_ok=True)
