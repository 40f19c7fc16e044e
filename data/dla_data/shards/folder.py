"""The folder of a preparation: whose turn it is to write it, and its tokenizer."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from dla_data.atomic import write_file
from dla_data.cache import exclusive
from dla_data.end_of_document import end_of_document_id
from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.prepared_folders import REQUEST_NAME
from dla_data.readers import DocumentReader, ReadingLog
from dla_data.shards.documents import all_held_out, nothing_to_read
from dla_data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer

_LOGGER = logging.getLogger("dla_data")

TOKENIZER_NAME = "tokenizer.json"

TOKENIZER_TEXT_BYTES = 100_000_000
"""Text that a tokenizer is trained on: an equal part from the beginning of every file. More changes little."""


@contextmanager
def claimed(out: Path) -> Iterator[bool]:
    """Make `out` and hold the lock on writing it; another process that prepares it waits.

    Yields whether the lock is really held (some network file systems have none).

    Raises:
        DataError: it cannot be written, or holds something that no preparation made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the output directory {out}: {error.strerror} ({error.filename}). Choose another one."
        ) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise DataError(f"the output directory {out} cannot be written. Make it writable, or choose another one.")
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    # A process that was killed between the two leaves the tokenizer without the request.
    if found and found != [TOKENIZER_NAME] and REQUEST_NAME not in found:
        raise DataError(
            f"the output directory {out} holds other things ({', '.join(found[:3])}). Choose a new or an empty one."
        )
    with exclusive(out / "prepare") as locked:
        yield locked


def settled_tokenizer(
    out: Path,
    readers: Sequence[DocumentReader],
    given: Path | None,
    vocab_size: int | None,
    validation_share: float,
    skip_bad: int,
) -> Tokenizer:
    """The tokenizer of `out`: the one that is there if shards may be there too, else the given one or a new one.

    Raises:
        DataError: the file is no tokenizer or ends no documents; `out` has another; too little text for `vocab_size`.
    """
    path = out / TOKENIZER_NAME
    wanted = load_tokenizer(given) if given else None
    if (out / REQUEST_NAME).exists():
        kept = load_tokenizer(path)
        if wanted is not None and tokenizer_fingerprint(wanted) != tokenizer_fingerprint(kept):
            raise DataError(f"{given} is another tokenizer than {path}, which made the shards there. Use that one.")
        if vocab_size is not None and kept.get_vocab_size() != vocab_size:
            raise DataError(
                f"a tokenizer of {vocab_size:,} is asked for, but {path} has {kept.get_vocab_size():,} entries and "
                "made the shards there. Ask for as many, or choose another output directory."
            )
        return kept
    if wanted is None:
        assert vocab_size is not None
        _LOGGER.info("training a tokenizer of %s", f"{vocab_size:,}")
        texts = _tokenizer_text(readers, validation_share, ReadingLog(skip_bad))
        wanted = train_tokenizer(chain([next(texts)], texts), vocab_size)  # the first, or why there is none
    end_of_document_id(wanted)
    write_file(path, wanted.to_str(pretty=True) + "\n")
    return wanted


def _tokenizer_text(readers: Sequence[DocumentReader], validation_share: float, log: ReadingLog) -> Iterator[str]:
    share = TOKENIZER_TEXT_BYTES // max(len(readers), 1)
    held_out, left_out, is_any = HeldOut(validation_share), 0, False
    for reader in readers:
        left = share
        for _, text in reader.documents(log=log):
            if not held_out(text):
                # A single long document must not be all of it, nor fill the memory.
                yield text[:left]
                is_any = True
                left -= len(text)
            else:
                left_out += 1
            if left <= 0:
                break
    if not is_any:
        raise all_held_out(left_out) if left_out else nothing_to_read(", ".join(reader.name for reader in readers))
