"""What a corpus holds, found in one pass: it names the corpus in the cache and shows later whether it has changed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from dla_data.corpora import CorpusSource, Document
from dla_data.counted import counted
from dla_data.errors import DataError


@dataclass(frozen=True)
class Inventory:
    """The documents of a corpus at the time of `take`.

    source: where they come from.
    digests: BLAKE2b of each document's text by name, in the order of the corpus; documents without text are left out.
    text_bytes: their length in UTF-8, together.
    without_text: names of the documents left out because they hold nothing but white space.
    skipped: names of the files that the source skipped as unreadable.
    """

    source: CorpusSource
    digests: dict[str, bytes]
    text_bytes: int
    without_text: tuple[str, ...]
    skipped: tuple[str, ...]

    @classmethod
    def take(cls, source: CorpusSource) -> "Inventory":
        """Read the whole corpus once.

        Raises:
            DataError: the corpus is missing, unreadable or has no text.
        """
        digests: dict[str, bytes] = {}
        text_bytes = 0
        without_text: list[str] = []
        skipped: list[str] = []
        for document in source.documents(skipped):
            if not document.text.strip():
                without_text.append(document.name)
                continue
            text = document.text.encode()
            digests[document.name] = _digest(text)
            text_bytes += len(text)
        if not digests:
            raise DataError(
                f"the corpus {source.description} is empty: {counted(len(without_text), 'document')}, none with text. "
                "Check the path, or give files with text in them."
            )
        return cls(source, digests, text_bytes, tuple(without_text), tuple(skipped))

    @property
    def names(self) -> list[str]:
        """Names of the documents with text, in the order of the corpus."""
        return list(self.digests)

    def fingerprint(self) -> str:
        """Return a SHA-256 over all names and texts, in hex."""
        total = hashlib.sha256()
        for name, digest in self.digests.items():
            total.update(hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest() + digest)
        return total.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Read the documents with text once more.

        Raises:
            DataError: a document changed, came or went since the inventory was taken.
        """
        count = 0
        for document in self.source.documents():
            if not document.text.strip() and document.name not in self.digests:
                continue
            if self.digests.get(document.name) != _digest(document.text.encode()):
                raise self._changed(document.name)
            count += 1
            yield document
        if count != len(self.digests):
            raise self._changed(f"{counted(len(self.digests) - count, 'document')} gone")

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"the corpus {self.source.description} changed while it was being prepared ({what}). "
            "Start again when nothing writes to it."
        )


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=32).digest()
