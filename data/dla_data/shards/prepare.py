"""From sources to shards of tokens: the same bytes for any number of processes, and after any interruption.

    OUT/
        tokenizer.json      given or trained here
        request.json        what was asked for; only the same request goes on with shards that are there
        shards/000000/ ...  see `dla_data.shards.shard`
        manifest.json       written last: counts, checksums, sources, skipped rows

This process reads the documents in order and writes the shards; others encode. A shard is closed by the document that
fills it, so shards depend on the text alone. After a kill, the shards that are there stay, and reading goes on behind
the last document of the last one.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from dla_data.atomic import new_directory, remove_leftovers
from dla_data.counted import counted
from dla_data.end_of_document import end_of_document_id
from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.prepared_folders import SHARDS_NAME
from dla_data.progress import Progress
from dla_data.readers import DataSetVersion, DocumentReader, ReadingLog, Source, TooManyBadRows
from dla_data.shards.documents import Read, all_held_out, documents_after, nothing_to_read
from dla_data.shards.encoders import Encoders
from dla_data.shards.folder import TOKENIZER_NAME, begin, claimed, is_begun
from dla_data.shards.prepared_manifest import MANIFEST_NAME, PreparedManifest, ShardEntry
from dla_data.shards.request import Request, versions_noted
from dla_data.shards.shard import (
    PARTS,
    ShardRecord,
    ShardWriter,
    part_manifests,
    shard_name,
    verify_shard,
)
from dla_data.shards.source_file import SourceFile
from dla_data.shards.tokenizer_choice import kept_tokenizer, trained_tokenizer
from dla_data.tokenizer import (
    END_OF_DOCUMENT,
    LARGEST_VOCABULARY,
    SMALLEST_VOCABULARY,
    Encoded,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_of,
)

_LOGGER = logging.getLogger("dla_data")

_MOST_WORKERS = 1024  # more than any machine has cores; a typing error of many more would take it down


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How to prepare.

    tokenizer: a `tokenizer.json`; or train_tokenizer: entries of one to be trained on the text. One of them is given.
    shard_tokens: a shard ends with the document that reaches this number of training tokens.
    validation_share: of the documents, chosen by a hash of their text.
    skip_bad: bad rows that may be left out, over all sources. workers: processes that encode.

    Raises:
        DataError: a value out of range.
    """

    tokenizer: Path | None = None
    train_tokenizer: int | None = None
    shard_tokens: int = 100_000_000
    validation_share: float = 0.01
    skip_bad: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.train_tokenizer is None):
            raise DataError("give a tokenizer's file, or the size of one to be trained: one of the two.")
        for name, least in (("shard_tokens", 1), ("skip_bad", 0), ("workers", 1)):
            if (value := getattr(self, name)) < least:
                raise DataError(f"{name} is {value:,}; it must be at least {least}.")
        if self.workers > _MOST_WORKERS:
            raise DataError(f"workers is {self.workers:,}; it must be at most {_MOST_WORKERS:,}.")
        size = self.train_tokenizer
        if size is not None and not SMALLEST_VOCABULARY <= size <= LARGEST_VOCABULARY:
            raise DataError(
                f"train_tokenizer is {size:,}; it must be at least {SMALLEST_VOCABULARY} (the 256 bytes and "
                f"{END_OF_DOCUMENT}) and at most {LARGEST_VOCABULARY:,}."
            )
        if not 0 <= self.validation_share < 1:
            raise DataError(f"validation_share is {self.validation_share}; it must be at least 0 and below 1.")


def prepare_shards(sources: Sequence[Source], out: Path, options: PrepareOptions) -> PreparedManifest:
    """Make the prepared folder `out`, or go on with it, or find it finished; returns its manifest.

    Raises:
        DataError: a source cannot be read or has too many bad rows; `out` holds something else or cannot be written; no
            documents. Whole shards stay, and the same call goes on with them; without one, nothing stays.
    """
    if any(os.path.realpath(source.path) == os.path.realpath(out) for source in sources):
        raise DataError(f"the output directory {out} is a source itself. Choose another one for the tokens.")
    readers, versions = _opened(sources, out, versions_noted(out) if is_begun(out) else {})
    with claimed(out) as locked:
        has_begun = is_begun(out)
        tokenizer = _tokenizer(out if has_begun else None, readers, options)
        end_of_document = end_of_document_id(tokenizer)
        request = Request(
            sources=tuple(sources),
            files=tuple(SourceFile.of(reader) for reader in readers),
            tokenizer=tokenizer_fingerprint(tokenizer),
            shard_tokens=options.shard_tokens,
            validation_share=options.validation_share,
            versions=versions,
        )
        if has_begun:
            request.require_in(out)
            if (out / MANIFEST_NAME).exists():
                _LOGGER.info("%s is finished already: nothing to do", out)
                return PreparedManifest.read(out)
        else:
            begin(out, request, tokenizer)
        records = _whole_shards(out / SHARDS_NAME, locked)
        template = ShardWriter(
            vocab_size=vocabulary_of(tokenizer),
            end_of_document=end_of_document,
            tokenizer=request.tokenizer,
            source=", ".join(source.path for source in sources),
        )
        try:
            _write_missing(readers, out / SHARDS_NAME, options, tokenizer, template, records)
        except TooManyBadRows as error:
            if not records:
                raise
            raise DataError(
                f"{error} {out} has {counted(len(records), 'shard')} of the files as they are, with which only more "
                "rows left out go on; mended files need another output directory."
            ) from error
        manifest = _summary(out, request, template, records)
        manifest.write(out)
        return manifest


def _tokenizer(begun: Path | None, readers: Sequence[DocumentReader], options: PrepareOptions) -> Tokenizer:
    """The tokenizer of the folder `begun`, or if that is None, the one for a new folder."""
    if begun is not None:
        return kept_tokenizer(begun / TOKENIZER_NAME, options.tokenizer, options.train_tokenizer)
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer)
    assert options.train_tokenizer is not None
    return trained_tokenizer(readers, options.train_tokenizer, options.validation_share, options.skip_bad)


def _opened(
    sources: Sequence[Source], out: Path, noted: Mapping[str, DataSetVersion]
) -> tuple[list[DocumentReader], dict[str, DataSetVersion]]:
    """The readers of all sources, and the versions of the data sets among them; those of the hub are read at the
    commits in `noted`."""
    readers: list[DocumentReader] = []
    versions: dict[str, DataSetVersion] = {}
    for source in sources:
        known = noted.get(source.path)
        opened = source.at(known and known.revision).readers(out)
        readers += opened
        if opened and (version := opened[0].version) is not None:
            versions[source.path] = version
            if version.revision is not None:
                again = ", as when the folder was begun" if known else ""
                _LOGGER.info("%s: commit %s%s", source.path, version.revision, again)
    times = Counter(os.path.realpath(reader.name) for reader in readers if reader.size is not None)
    for name in (name for name, count in times.items() if count > 1):
        _LOGGER.warning("%s is read %d times, because several sources name it", name, times[name])
    return readers, versions


def _whole_shards(directory: Path, locked: bool) -> list[ShardRecord]:
    """The records of the shards that earlier processes finished; what they left unfinished is removed if `locked`.

    Without the lock another process may still be writing it.

    Raises:
        DataError: one of them is damaged.
    """
    records: list[ShardRecord] = []
    while (shard := directory / shard_name(len(records))).exists():
        verify_shard(shard)
        records.append(ShardRecord.read(shard))
    if locked:
        remove_leftovers(shard)
    if records:
        _LOGGER.info("going on after %s in %s", counted(len(records), "whole shard"), directory)
    return records


def _write_missing(
    readers: Sequence[DocumentReader],
    directory: Path,
    options: PrepareOptions,
    tokenizer: Tokenizer,
    template: ShardWriter,
    records: list[ShardRecord],
) -> None:
    """Write the shards behind those of `records` and add their records."""
    log = ReadingLog(options.skip_bad, [row for record in records for row in record.skipped])
    total = None if any(reader.size is None for reader in readers) else sum(reader.size or 0 for reader in readers)
    reads: deque[Read] = deque()
    last = records[-1] if records else None
    texts = documents_after(last, readers, HeldOut(options.validation_share), log, reads.append)
    began, text_bytes, tokens = time.monotonic(), 0, 0
    with ExitStack() as stack:
        encoders = stack.enter_context(Encoders(tokenizer, options.workers))
        documents = ((reads.popleft(), encoded) for encoded in encoders.encode(texts))
        first = next(documents, None)
        # Only now is it known how much an earlier process has done; it must not count towards the speed shown.
        behind = first[0].bytes_read if first and records and total else 0
        progress = stack.enter_context(Progress("encoding", total, behind))
        while first is not None:
            known = sum(len(record.skipped) for record in records)
            shard = directory / shard_name(len(records))
            with new_directory(shard) as unfinished, template.into(unfinished, shard) as writer:
                read = _fill(writer, chain([first], documents), options.shard_tokens, progress)
                if not records and not writer.training_tokens:  # a shard ends with a training document, or the text
                    raise all_held_out(writer.documents)
                record = ShardRecord(
                    reader=read.reader, position=read.position, skipped=tuple(log.skipped[known : read.skipped])
                )
                writer.close(record)
            records.append(record)
            text_bytes, tokens = text_bytes + writer.text_bytes, tokens + writer.tokens
            first = next(documents, None)
        if records:
            # Bad rows after the last document belong to no shard; they enter the manifest with those of the last one.
            known = sum(len(record.skipped) for record in records)
            records[-1] = replace(records[-1], skipped=(*records[-1].skipped, *log.skipped[known:]))
    seconds = time.monotonic() - began
    if tokens:
        _LOGGER.info(
            "encoded %.1f MB of text into %s tokens in %.1f s (%.2f MB/s) with %s",
            text_bytes / 1e6,
            f"{tokens:,}",
            seconds,
            text_bytes / 1e6 / seconds,
            counted(options.workers, "worker"),
        )


def _fill(
    writer: ShardWriter, documents: Iterator[tuple[Read, Encoded]], shard_tokens: int, progress: Progress
) -> Read:
    """Write documents until the shard is full or there are no more; returns what is known about the last one."""
    for read, encoded in documents:
        writer.add(read.part, encoded)
        done = encoded.text_bytes if progress.total_bytes is None else read.bytes_read - progress.done_bytes
        progress.advance(max(done, 0))
        if writer.training_tokens >= shard_tokens:
            break
    return read


def _summary(out: Path, request: Request, template: ShardWriter, records: Sequence[ShardRecord]) -> PreparedManifest:
    if not records:
        raise nothing_to_read(template.source)
    names = [shard_name(number) for number in range(len(records))]
    manifests = [part_manifests(out / SHARDS_NAME / name) for name in names]
    counts = {
        part: {
            key: sum(getattr(parts[part], key) for parts in manifests if part in parts)
            for key in ("documents", "tokens", "text_bytes")
        }
        for part in PARTS
    }
    return PreparedManifest(
        vocab_size=template.vocab_size,
        end_of_document=template.end_of_document,
        tokenizer=request.tokenizer,
        request=request.tree(),
        counts=counts,
        shards=tuple(ShardEntry.of(name, parts) for name, parts in zip(names, manifests, strict=True)),
        skipped=tuple(row for record in records for row in record.skipped),
    )
