"""What a preparation was asked for, kept beside its shards so that only the same one goes on with them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dla_data.atomic import write_file
from dla_data.errors import DataError
from dla_data.prepared_folders import REQUEST_NAME
from dla_data.readers import DataSetVersion, DocumentReader, Source

FORMAT = "dla-request"
VERSION = 1  # raise it when the same request would give other shards: a folder is not gone on with by another rule


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file or shard that is read: its name, and what shows that it is still the same one."""

    name: str
    bytes: int | None
    modified_ns: int | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that decides what the shards hold; the number of workers does not.

    sources: as the user wrote them. files: what they consist of, in the order in which they are read.
    tokenizer: its fingerprint. shard_tokens: a shard is closed by the document that reaches this number.
    validation_share: of the documents. versions: of the data sets among the sources, by path; files have none.
    """

    sources: tuple[Source, ...]
    files: tuple[SourceFile, ...]
    tokenizer: str
    shard_tokens: int
    validation_share: float
    versions: Mapping[str, DataSetVersion] = field(default_factory=dict)

    def tree(self) -> dict:
        """As JSON would give it back; without `versions` where there are none."""
        tree = json.loads(json.dumps(asdict(self)))
        return tree if self.versions else {key: value for key, value in tree.items() if key != "versions"}

    def keep(self, directory: Path) -> bool:
        """Write the request into `directory`, or compare it with the one that is there.

        Returns:
            whether one was there, so that its shards may be gone on with.

        Raises:
            DataError: another request is there.
        """
        path = directory / REQUEST_NAME
        if not path.exists():
            content = {"format": FORMAT, "version": VERSION, **self.tree()}
            write_file(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
            return False
        found = _read(path)
        if found != self.tree():
            changed = [key for key, value in self.tree().items() if found.get(key) != value]
            raise DataError(
                f"{directory} holds shards of another preparation: {', '.join(changed) or 'more'} differ "
                f"({path.name} has what was asked for then). Ask for the same, or choose another output directory."
            )
        return True


def versions_noted(directory: Path) -> dict[str, DataSetVersion]:
    """The versions of the request in `directory`, of which a preparation goes on reading the same; none without one.

    Raises:
        DataError: it is damaged, or of another format.
    """
    path = directory / REQUEST_NAME
    if not path.exists():
        return {}
    try:
        return {source: DataSetVersion(**version) for source, version in _read(path).get("versions", {}).items()}
    except (AttributeError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}). Choose another output directory.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}. Choose another output directory.") from error
    if not isinstance(content, dict) or (content.pop("format", None), content.pop("version", None)) != (
        FORMAT,
        VERSION,
    ):
        raise DataError(
            f"{path} was not written by this version of dla-train, which cannot go on with {path.parent}. Choose "
            "another output directory; a finished folder can still be trained on."
        )
    return content


def source_file(reader: DocumentReader) -> SourceFile:
    """What identifies the file of `reader` without reading it."""
    if reader.size is None:
        return SourceFile(name=reader.name, bytes=None, modified_ns=None)
    return SourceFile(name=reader.name, bytes=reader.size, modified_ns=os.stat(reader.name).st_mtime_ns)
