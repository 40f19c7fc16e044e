"""Which documents are for validation: decided by their names, so that a growing corpus does not move any across."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dla_data.corpora import Document
from dla_data.errors import DataError

# Changing either moves documents between the parts and makes losses incomparable with earlier runs.
VALIDATION_SHARE = 0.05
# Documents differ so much in size and kind that the standard library's validation part depends strongly on the salt:
# over twenty salts it had 2 to 10 % of the bytes and a bigram loss of 3.8 to 5.3 nats. This salt gives a typical part
# (4.3 %, 4.3 nats).
_SALT = "dla_data 9"


def name_position(name: str) -> float:
    """Map a document name to a fixed number, uniform in [0, 1)."""
    digest = hashlib.blake2b((_SALT + name).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class Split:
    """The validation part of one corpus.

    Documents whose name hashes below `VALIDATION_SHARE` are for validation: 5 % of the documents on average, and a
    share of the bytes that depends on which files are large (4.3, 5.1 and 5.3 % of the standard library of Python 3.11,
    3.12 and 3.13). Two cases need another rule, because a part without text is useless. If none or all of a few
    documents hash low, the one that hashes lowest is for validation. A single document gives its last 5 %, cut where a
    line begins.
    """

    validation_names: frozenset[str]
    cut: bool = False

    @classmethod
    def of(cls, names: Sequence[str]) -> "Split":
        """Decide for the documents called `names`."""
        if not names:
            raise DataError("the corpus has no documents with text: there is nothing to train on.")
        if len(names) == 1:
            return cls(frozenset(names), cut=True)
        chosen = frozenset(name for name in names if name_position(name) < VALIDATION_SHARE)
        if not chosen or len(chosen) == len(names):
            chosen = frozenset({min(names, key=name_position)})
        return cls(chosen)

    def train(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the training part, in the order given."""
        for document in documents:
            if self.cut:
                yield Document(document.name, document.text[: _cut_position(document.text)])
            elif document.name not in self.validation_names:
                yield document

    def validation(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the validation part, in the order given."""
        for document in documents:
            if self.cut:
                yield Document(document.name, document.text[_cut_position(document.text) :])
            elif document.name in self.validation_names:
                yield document

    def describe(self) -> str:
        """Say in words which rule was used."""
        if self.cut:
            return f"last {VALIDATION_SHARE:.0%} of the only document"
        return f"{len(self.validation_names)} documents, by name (share {VALIDATION_SHARE:.0%}, salt {_SALT!r})"


def _cut_position(text: str) -> int:
    """Where validation begins in a single document: at the first line early in its last 5 %, or exactly there."""
    earliest = int(len(text) * (1 - VALIDATION_SHARE))
    latest = (earliest + len(text)) // 2  # later lines would leave too little
    line_end = text.find("\n", max(earliest - 1, 0), latest)
    return earliest if line_end < 0 else line_end + 1
