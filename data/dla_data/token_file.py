"""A corpus, or a shard of one, as tokens on disk: written once, then memory-mapped.

A token file is a directory:

    tokens.bin     all tokens in a row, uint16 (uint32 for vocabularies above 65,536), little-endian;
                   each document is followed by the end-of-document token
    offsets.npy    int64 [documents]: where each document begins in tokens.bin
    manifest.json  counts, vocabulary, tokenizer fingerprint, source, size and SHA-256 of both files

It is written beside its final place and renamed, so it is there complete or not at all. Reading never unpickles.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dla_data.atomic import new_directory
from dla_data.errors import DataError, unreadable
from dla_data.manifest import WAY_OUT, TokenManifest
from dla_data.token_file_writer import OFFSETS_NAME, TOKENS_NAME, TokenFileWriter
from dla_data.tokenizer import Encoded

_SCAN_TOKENS = 1 << 22  # tokens looked at together when checking a whole file


class TokenFile:
    """A memory-mapped token file; made by `TokenFile.open`. Cheap to send to another process, which maps it again."""

    def __init__(self, path: Path, manifest: TokenManifest) -> None:
        self.path = path
        self.manifest = manifest
        self._tokens = np.memmap(path / TOKENS_NAME, dtype=manifest.token_dtype, mode="r")
        self._document_starts = np.load(path / OFFSETS_NAME, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = False) -> "TokenFile":
        """Map the token file at `path`. Sizes are always checked, contents (`verify`) on request.

        Raises:
            DataError: nothing there, or damaged; the message names the file and both values.
        """
        directory = Path(path)
        manifest = TokenManifest.read(directory)
        check_sizes(directory, manifest)
        try:
            token_file = cls(directory, manifest)
        except OSError as error:
            raise unreadable(directory, error) from error
        except ValueError as error:  # not an array file, or one that would need unpickling
            raise DataError(f"cannot map the token file {directory}: {error}. {WAY_OUT}") from error
        starts = token_file._document_starts
        if starts.dtype != np.dtype("<i8") or starts.shape != (manifest.documents,):
            raise DataError(
                f"{directory / OFFSETS_NAME} holds {starts.dtype} {list(starts.shape)}, "
                f"but the manifest says int64 [{manifest.documents}]. {WAY_OUT}"
            )
        if verify:
            token_file.verify()
        return token_file

    def __reduce__(self) -> tuple:
        return TokenFile.open, (self.path,)  # a pickled memory map would carry all its data

    def __str__(self) -> str:
        return f"{self.path} ({self.manifest.source})"

    @property
    def tokens(self) -> int:
        """Number of tokens, end-of-document tokens included."""
        return self.manifest.tokens

    @property
    def document_starts(self) -> npt.NDArray[np.int64]:
        """int64 [documents], memory-mapped: where each document begins. Each ends with its end-of-document token."""
        return self._document_starts

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Copy tokens `start` to `stop` (exclusive), int64 [stop - start].

        Raises:
            DataError: the range is not inside the file.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise DataError(f"tokens {start} to {stop} asked for, but {self} has tokens 0 to {self.tokens}.")
        return self._tokens[start:stop].astype(np.int64)

    def require_tokenizer(self, fingerprint: str) -> None:
        """Raise DataError unless the tokens were made by the tokenizer with this fingerprint."""
        if fingerprint != self.manifest.tokenizer:
            raise DataError(
                f"the tokens in {self.path} were made by tokenizer {self.manifest.tokenizer[:16]}, "
                f"but the tokenizer given is {fingerprint[:16]}. "
                "Use the tokenizer.json that belongs to them, or prepare the corpus again."
            )

    def verify(self) -> None:
        """Read everything and compare with the manifest: checksums, document starts, range of the tokens.

        Raises:
            DataError: names the first file that does not fit, and both values.
        """
        for name, record in self.manifest.files.items():
            try:
                with (self.path / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise unreadable(self.path / name, error) from error
            if found != record.sha256:
                raise DataError(
                    f"{self.path / name} is damaged: its SHA-256 is {found}, "
                    f"but the manifest says {record.sha256}. {WAY_OUT}"
                )
        starts = self._document_starts
        if starts[0] != 0 or starts[-1] >= self.tokens or (np.diff(starts) <= 0).any():
            raise DataError(
                f"{self.path / OFFSETS_NAME}: document starts do not rise from 0 to below {self.tokens}. {WAY_OUT}"
            )
        for begin in range(0, self.tokens, _SCAN_TOKENS):
            highest = int(self._tokens[begin : begin + _SCAN_TOKENS].max())
            if highest >= self.manifest.vocab_size:
                raise DataError(
                    f"{self.path / TOKENS_NAME} holds token {highest}, "
                    f"but the manifest says a vocabulary of {self.manifest.vocab_size}. {WAY_OUT}"
                )


def check_sizes(directory: Path, manifest: TokenManifest) -> None:
    """Compare the sizes of the files in `directory` with its manifest, without opening them.

    Raises:
        DataError: one is missing or of another size; names it and both values.
    """
    if manifest.files.keys() != {TOKENS_NAME, OFFSETS_NAME} or not manifest.tokens or not manifest.documents:
        raise DataError(f"the manifest of {directory} does not describe {TOKENS_NAME} and {OFFSETS_NAME}. {WAY_OUT}")
    for name, record in manifest.files.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing. {WAY_OUT}") from error
        except OSError as error:
            raise unreadable(path, error) from error
        if size != record.bytes:
            raise DataError(f"{path} has {size:,} bytes, but the manifest says {record.bytes:,}. {WAY_OUT}")
    stated = manifest.tokens * manifest.token_dtype.itemsize
    if manifest.files[TOKENS_NAME].bytes != stated:
        raise DataError(
            f"the manifest of {directory} says {manifest.tokens:,} tokens ({stated:,} bytes), "
            f"but {manifest.files[TOKENS_NAME].bytes:,} bytes for {TOKENS_NAME}. {WAY_OUT}"
        )


def write_token_file(
    path: str | os.PathLike[str],
    documents: Iterable[Encoded],
    *,
    vocab_size: int,
    end_of_document: int,
    tokenizer_fingerprint: str,
    source: str,
) -> TokenFile:
    """Write `documents`, one at a time, as a new token file at `path` and open it.

    Raises:
        DataError: no documents, a token outside the vocabulary, `path` exists or cannot be written. Nothing is left
            behind.
    """
    with new_directory(Path(path)) as directory:
        writer = TokenFileWriter(directory, Path(path), vocab_size, end_of_document)
        for document in documents:
            writer.add(document)
        writer.close(tokenizer_fingerprint, source)
    return TokenFile.open(path)
