"""Writes the files of a token file (`dla_data.token_file`) one document at a time."""

import hashlib
from array import array
from pathlib import Path

import numpy as np

from dla_data.end_of_document import require_no_end
from dla_data.errors import DataError
from dla_data.manifest import FileRecord, TokenManifest
from dla_data.tokenizer import Encoded

TOKENS_NAME = "tokens.bin"
OFFSETS_NAME = "offsets.npy"


class TokenFileWriter:
    """Fills an existing empty directory; whoever makes the directory sees to it that it appears complete or not at all.

    Args:
        directory: to be filled. shown: what messages call it, which is its name once it is complete.
        vocab_size: every token is below it. end_of_document: the id written after each document.

    Raises:
        DataError: `end_of_document` is outside the vocabulary.
    """

    def __init__(self, directory: Path, shown: Path, vocab_size: int, end_of_document: int) -> None:
        if not 0 <= end_of_document < vocab_size:
            raise DataError(f"end-of-document token {end_of_document} is outside the vocabulary of {vocab_size:,}.")
        self._directory = directory
        self._shown = shown
        self._vocab_size = vocab_size
        self._end_of_document = end_of_document
        self._dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self._stored = np.dtype(self._dtype).newbyteorder("<")
        self._starts = array("q")
        self._digest = hashlib.sha256()
        self._text_bytes = 0
        self.tokens = 0
        """Tokens so far, end-of-document tokens included."""
        self._file = (directory / TOKENS_NAME).open("wb")

    def add(self, document: Encoded) -> None:
        """Write one document and the token that ends it.

        Raises:
            DataError: a token outside the vocabulary, or the one that ends documents within the document.
        """
        what = f"document {len(self._starts)} for {self._shown}"
        if document.ids.size and document.ids.max() >= self._vocab_size:
            raise DataError(
                f"{what} holds token {document.ids.max()}, "
                f"outside the vocabulary of {self._vocab_size:,}. Encode it with the right tokenizer."
            )
        require_no_end(document.ids, self._end_of_document, what)
        content = np.append(document.ids, self._end_of_document).astype(self._stored).tobytes()
        self._file.write(content)
        self._digest.update(content)
        self._starts.append(self.tokens)
        self.tokens += document.ids.size + 1
        self._text_bytes += document.text_bytes

    def close(self, tokenizer_fingerprint: str, source: str) -> TokenManifest:
        """Write what remains, the manifest last, and return it.

        Raises:
            DataError: no documents.
        """
        self._file.close()
        if not self._starts:
            raise DataError(f"no documents for the token file {self._shown}. Give a corpus with text in it.")
        offsets = self._directory / OFFSETS_NAME
        np.save(offsets, np.asarray(self._starts, dtype="<i8"), allow_pickle=False)
        with offsets.open("rb") as file:
            offsets_digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = TokenManifest(
            dtype=self._dtype,
            tokens=self.tokens,
            documents=len(self._starts),
            text_bytes=self._text_bytes,
            vocab_size=self._vocab_size,
            end_of_document=self._end_of_document,
            tokenizer=tokenizer_fingerprint,
            source=source,
            files={
                TOKENS_NAME: FileRecord(bytes=self.tokens * self._stored.itemsize, sha256=self._digest.hexdigest()),
                OFFSETS_NAME: FileRecord(bytes=offsets.stat().st_size, sha256=offsets_digest),
            },
        )
        manifest.write(self._directory)
        return manifest

    def abandon(self) -> None:
        """Close the file without finishing it."""
        self._file.close()
