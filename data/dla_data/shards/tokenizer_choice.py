"""The tokenizer of a preparation: the one that made the existing shards, the given one, or one trained here."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.readers import DocumentReader, ReadingLog
from dla_data.shards.documents import all_held_out, nothing_to_read
from dla_data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer

_LOGGER = logging.getLogger("dla_data")

TOKENIZER_TEXT_BYTES = 100_000_000
"""Text that a tokenizer is trained on: an equal part from the beginning of every file. More changes little."""


def kept_tokenizer(path: Path, given: Path | None, vocab_size: int | None) -> Tokenizer:
    """The tokenizer at `path`, which made the shards there, if that is what is asked for.

    Raises:
        DataError: a file is no tokenizer; it is not the one in `given`, or not one of `vocab_size` entries.
    """
    wanted = load_tokenizer(given) if given else None
    kept = load_tokenizer(path)
    if wanted is not None and tokenizer_fingerprint(wanted) != tokenizer_fingerprint(kept):
        raise DataError(f"{given} is another tokenizer than {path}, which made the shards there. Use that one.")
    if vocab_size is not None and kept.get_vocab_size() != vocab_size:
        raise DataError(
            f"a tokenizer of {vocab_size:,} is asked for, but {path} has {kept.get_vocab_size():,} entries and "
            "made the shards there. Ask for as many, or choose another output directory."
        )
    return kept


def trained_tokenizer(
    readers: Sequence[DocumentReader], vocab_size: int, validation_share: float, skip_bad: int
) -> Tokenizer:
    """A tokenizer of `vocab_size` entries, trained on the training part of the text.

    Raises:
        DataError: too little text, or text that cannot be read.
    """
    _LOGGER.info("training a tokenizer of %s", f"{vocab_size:,}")
    texts = _tokenizer_text(readers, HeldOut(validation_share), ReadingLog(skip_bad))
    return train_tokenizer(chain([next(texts)], texts), vocab_size)  # next: raises the reason if there is no text


def _tokenizer_text(readers: Sequence[DocumentReader], held_out: HeldOut, log: ReadingLog) -> Iterator[str]:
    share = TOKENIZER_TEXT_BYTES // max(len(readers), 1)
    left_out, is_any = 0, False
    for reader in readers:
        left = share
        for _, text in reader.documents(log=log):
            if not held_out(text):
                # A single long document must neither be the whole training text nor fill the memory.
                yield text[:left]
                is_any = True
                left -= len(text)
            else:
                left_out += 1
            if left <= 0:
                break
    if not is_any:
        raise all_held_out(left_out) if left_out else nothing_to_read(", ".join(reader.name for reader in readers))
