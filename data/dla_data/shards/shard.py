"""One shard: some whole documents as tokens, those for training and those for validation apart.

    000003/
        train/, validation/     token files (`dla_data.token_file`); a part without documents is not there
        shard.json              its last document, behind which a later process goes on; bad rows met on the way

It appears complete or not at all.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dla_data.errors import DataError
from dla_data.manifest import WAY_OUT, TokenManifest
from dla_data.readers import BadRow, Position
from dla_data.token_file import TokenFile
from dla_data.token_file_writer import TokenFileWriter
from dla_data.tokenizer import Encoded

PARTS = ("train", "validation")
_RECORD_NAME = "shard.json"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """How far a shard reaches.

    reader, position: of its last document. skipped: bad rows since the shard before it.
    """

    reader: int
    position: Position
    skipped: tuple[BadRow, ...]

    @classmethod
    def read(cls, directory: Path) -> "ShardRecord":
        """Read the record of the shard in `directory`.

        Raises:
            DataError: it is missing or damaged.
        """
        path = directory / _RECORD_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                reader=int(content["reader"]),
                position=Position(*content["position"]),
                skipped=tuple(BadRow(*row) for row in content["skipped"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is missing or damaged ({error}). {WAY_OUT}") from error


class ShardWriter:
    """Fills the directory of one shard after another.

    Args:
        vocab_size, end_of_document, tokenizer, source: for the manifests of the token files.
    Attributes:
        documents, tokens, text_bytes: of the shard being written, both parts together.
    """

    def __init__(self, *, vocab_size: int, end_of_document: int, tokenizer: str, source: str) -> None:
        self.vocab_size = vocab_size
        self.end_of_document = end_of_document
        self.source = source
        self.documents = self.tokens = self.text_bytes = 0
        self._tokenizer = tokenizer
        self._parts: dict[str, TokenFileWriter] = {}

    @contextmanager
    def into(self, directory: Path, shown: Path) -> Iterator["ShardWriter"]:
        """Begin the shard in the empty `directory`, which messages call `shown`; files are closed whatever happens."""
        self._directory = directory
        self._shown = shown
        self._parts = {}
        self.documents = self.tokens = self.text_bytes = 0
        try:
            yield self
        finally:
            for part in self._parts.values():
                part.abandon()

    @property
    def training_tokens(self) -> int:
        """Tokens for training so far."""
        return self._parts["train"].tokens if "train" in self._parts else 0

    def add(self, part: str, document: Encoded) -> None:
        """Write a document into `part`."""
        if part not in self._parts:
            (self._directory / part).mkdir()
            self._parts[part] = TokenFileWriter(
                self._directory / part, self._shown / part, self.vocab_size, self.end_of_document
            )
        self._parts[part].add(document)
        self.documents += 1
        self.tokens += document.ids.size + 1
        self.text_bytes += document.text_bytes

    def close(self, record: ShardRecord) -> None:
        """Write what remains."""
        for part, writer in self._parts.items():
            writer.close(self._tokenizer, f"{self.source}, {part} part, shard {self._shown.name}")
        text = json.dumps(asdict(record), indent=2, sort_keys=True)
        (self._directory / _RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def shard_name(number: int) -> str:
    """The name of a shard's directory; names sort by number."""
    return f"{number:06}"


def part_manifests(directory: Path) -> dict[str, TokenManifest]:
    """The manifests of the parts that the shard in `directory` has."""
    return {part: TokenManifest.read(directory / part) for part in PARTS if (directory / part).is_dir()}


def verify_shard(directory: Path, parts: Sequence[str] = PARTS) -> None:
    """Compare everything in these parts of a shard with their manifests.

    Raises:
        DataError: something is missing or damaged; names the file and both values.
    """
    ShardRecord.read(directory)
    manifests = part_manifests(directory)
    if not manifests:
        raise DataError(f"the shard {directory} has no tokens. {WAY_OUT}")
    for part in manifests:
        if part in parts:
            TokenFile.open(directory / part, verify=True)
