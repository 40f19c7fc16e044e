"""From a corpus to what training reads: a tokenizer and two token files, made once and kept.

The cache holds one directory per (text of the corpus, vocabulary size, format):

    corpora/<label>-<vocabulary size>-<key>/
        tokenizer.json
        train/, validation/     token files (`dla_data.token_file`)
        corpus.json             what went in: for people, nothing reads it

Its content is a function of the text and the vocabulary size alone, so processes that race for it cannot disagree.
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from dla_data.atomic import new_directory, remove_leftovers
from dla_data.cache import cache_root, exclusive
from dla_data.corpora import CorpusSource
from dla_data.counted import counted
from dla_data.end_of_document import end_of_document_id
from dla_data.errors import DataError, Unreadable
from dla_data.inventory import Inventory
from dla_data.manifest import VERSION as TOKEN_FORMAT_VERSION
from dla_data.progress import Progress
from dla_data.split import Split
from dla_data.token_file import TokenFile, write_token_file
from dla_data.tokenizer import (
    encode_documents,
    load_tokenizer,
    require_vocabulary,
    save_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)

_LOGGER = logging.getLogger("dla_data")

# Raise it when the same text should give other tokens: another split, another way to train the tokenizer, other
# directories.
_RECIPE_VERSION = 1


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus ready for training: both token files were made with the tokenizer at `tokenizer_path`."""

    tokenizer_path: Path
    train: TokenFile
    validation: TokenFile


def prepare_corpus(
    source: CorpusSource, vocab_size: int, cache_dir: str | os.PathLike[str] | None = None
) -> PreparedCorpus:
    """Return the prepared form of `source`: from the cache if it is there and intact, otherwise made anew.

    The corpus is read once in any case, to know that it is still the same text. The cached files are checked by their
    checksums; a damaged one is named in a warning and everything is made again. The tokenizer is trained on the
    training part alone. Several processes may call this at once: one prepares, the others wait for it.

    Args:
        source: `StdlibCorpus()` or `TextCorpus(path)`.
        vocab_size: entries of the byte-level BPE tokenizer, end-of-document token included; at least 257.
        cache_dir: where to keep it; None means `cache_root()`.

    Raises:
        DataError: the corpus is missing, empty, not UTF-8 or too small for the vocabulary; the cache cannot be written.
    """
    require_vocabulary(vocab_size)
    inventory = Inventory.take(source)
    if inventory.skipped:
        _LOGGER.warning(
            "skipped %s, not UTF-8: %s", counted(len(inventory.skipped), "file"), ", ".join(inventory.skipped)
        )
    if (remark := source.remark) is not None:
        _LOGGER.info("%s", remark)
    root = cache_root() if cache_dir is None else Path(cache_dir).absolute()
    split = Split.of(inventory.names)
    target = root / "corpora" / f"{source.label}-{vocab_size}-{_key(inventory, split, vocab_size)}"

    # First without the lock: an intact cache can be used even if it cannot be written.
    if target.exists():
        try:
            return _open_verified(target)
        except DataError as error:
            _LOGGER.debug("will be looked at again with the lock held: %s", error)
    with exclusive(target) as locked:
        if locked:
            remove_leftovers(target)
        if target.exists():
            try:
                return _open_verified(target)
            except Unreadable:
                raise
            except DataError as error:
                _LOGGER.warning("the prepared corpus is damaged and is made again: %s", error)
        _prepare(inventory, split, vocab_size, target)
    return _open_verified(target)


def _key(inventory: Inventory, split: Split, vocab_size: int) -> str:
    """Hash what decides the content of the directory."""
    deciding = [_RECIPE_VERSION, TOKEN_FORMAT_VERSION, vocab_size, inventory.fingerprint(), split.describe()]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]


def _open_verified(directory: Path) -> PreparedCorpus:
    """Open all parts, check their checksums and that they belong together."""
    tokenizer_path = directory / "tokenizer.json"
    fingerprint = tokenizer_fingerprint(load_tokenizer(tokenizer_path))
    parts = {name: TokenFile.open(directory / name, verify=True) for name in ("train", "validation")}
    for part in parts.values():
        part.require_tokenizer(fingerprint)
    return PreparedCorpus(tokenizer_path, parts["train"], parts["validation"])


def _prepare(inventory: Inventory, split: Split, vocab_size: int, target: Path) -> None:
    began = time.monotonic()
    with new_directory(target, replace=True) as directory:
        with Progress(f"training a tokenizer of {vocab_size:,}", inventory.text_bytes) as progress:
            tokenizer = train_tokenizer(progress.watch(split.train(inventory.documents())), vocab_size)
        save_tokenizer(tokenizer, directory / "tokenizer.json")
        written = {}
        with Progress("encoding", inventory.text_bytes) as progress:
            for name, select in (("train", split.train), ("validation", split.validation)):
                texts = progress.watch(select(inventory.documents()))
                written[name] = write_token_file(
                    directory / name,
                    encode_documents(tokenizer, texts),
                    vocab_size=vocab_size,
                    end_of_document=end_of_document_id(tokenizer),
                    tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
                    source=f"{inventory.source.description}, {name} part",
                ).manifest
        _write_summary(directory / "corpus.json", inventory, split, vocab_size)
    _LOGGER.info(
        "prepared %s in %.1f s: %s, %.1f MB, %s training and %s validation tokens, in %s",
        inventory.source.description,
        time.monotonic() - began,
        counted(len(inventory.digests), "document"),
        inventory.text_bytes / 1e6,
        f"{written['train'].tokens:,}",
        f"{written['validation'].tokens:,}",
        target,
    )


def _write_summary(path: Path, inventory: Inventory, split: Split, vocab_size: int) -> None:
    summary = {
        "source": inventory.source.description,
        "fingerprint": inventory.fingerprint(),
        "vocab_size": vocab_size,
        "documents": len(inventory.digests),
        "text_bytes": inventory.text_bytes,
        "documents_without_text": list(inventory.without_text),
        "skipped_not_utf8": list(inventory.skipped),
        "validation": split.describe(),
        "validation_documents": sorted(split.validation_names),
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
