"""What a preparation was asked for, kept beside its shards so that only the same one goes on with them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dla_data.atomic import write_file
from dla_data.errors import DataError
from dla_data.prepared_folders import REQUEST_FORMAT, REQUEST_NAME
from dla_data.readers import DataSetVersion, Source
from dla_data.shards.source_file import SourceFile, file_changes

VERSION = 1  # raise it when the same request would give other shards, so that no folder is continued by another rule


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

    def write(self, directory: Path) -> None:
        """Write the request into `directory`.

        Raises:
            DataError: the operating system refuses to write.
        """
        content = {"format": REQUEST_FORMAT, "version": VERSION, **self.tree()}
        write_file(directory / REQUEST_NAME, json.dumps(content, indent=2) + "\n")

    def require_in(self, directory: Path) -> None:
        """Raise DataError, which says what differs, unless `directory` has the same request."""
        path = directory / REQUEST_NAME
        found, asked = _read(path), self.tree()
        changed = [key for key in {**asked, **found} if found.get(key) != asked.get(key)]
        if not changed:
            return
        numbers = {
            key: f" ({found[key]} then, {asked[key]} now)"
            for key in changed
            if isinstance(found.get(key), int | float) and isinstance(asked.get(key), int | float)
        }
        named = ", ".join(f"{key}{numbers.get(key, '')}" for key in changed)
        detail = f": {self._file_changes(found, path)}" if "files" in changed else ""
        raise DataError(
            f"{directory} holds shards of another preparation: what differs is {named}; {path.name} "
            f"has what was asked for then{detail}. Ask for the same, or choose another output directory."
        )

    def _file_changes(self, found: dict[str, Any], path: Path) -> str:
        try:
            return file_changes([SourceFile(**file) for file in found["files"]], self.files)
        except (KeyError, TypeError) as error:
            raise _damaged(path, error) from error


def versions_noted(directory: Path) -> dict[str, DataSetVersion]:
    """The data set versions in the request of `directory`; a preparation that continues it reads the same ones.

    Raises:
        DataError: it is missing, damaged, or of another format.
    """
    path = directory / REQUEST_NAME
    try:
        return {source: DataSetVersion(**version) for source, version in _read(path).get("versions", {}).items()}
    except (AttributeError, TypeError) as error:
        raise _damaged(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}. Choose another output directory.") from error
    found = (content.pop("format", None), content.pop("version", None)) if isinstance(content, dict) else None
    if found != (REQUEST_FORMAT, VERSION):
        raise DataError(
            f"{path} was not written by this version of dla-train, which cannot go on with {path.parent}. Choose "
            "another output directory; a finished folder can still be trained on."
        )
    return content


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged ({error}). Choose another output directory.")
