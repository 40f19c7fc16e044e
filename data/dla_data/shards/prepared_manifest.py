"""The manifest of a prepared folder, written last: a folder without one is not finished and is never read."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dla_data.atomic import write_file
from dla_data.errors import DataError
from dla_data.manifest import WAY_OUT, TokenManifest
from dla_data.prepared_folders import REQUEST_NAME
from dla_data.readers import BadRow

MANIFEST_NAME = "manifest.json"
FORMAT = "dla-prepared"
VERSION = 1  # raise it when an older reader would misread the folder


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard in the manifest: for each of its parts tokens, documents and the SHA-256 of each file."""

    name: str
    parts: dict[str, dict]

    @classmethod
    def of(cls, name: str, manifests: dict[str, TokenManifest]) -> "ShardEntry":
        """The entry of the shard with these token files."""
        return cls(name=name, parts={part: _part_entry(manifest) for part, manifest in manifests.items()})


def _part_entry(manifest: TokenManifest) -> dict:
    return {
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "text_bytes": manifest.text_bytes,
        "sha256": {name: record.sha256 for name, record in manifest.files.items()},
    }


@dataclass(frozen=True, kw_only=True)
class PreparedManifest:
    """What `manifest.json` says.

    vocab_size, end_of_document: of the tokenizer, whose fingerprint `tokenizer` is.
    request: what was asked for (`dla_data.shards.request`).
    counts: documents, tokens and text_bytes of each part, over all shards.
    shards: in order. skipped: the bad rows that were left out.
    """

    vocab_size: int
    end_of_document: int
    tokenizer: str
    request: dict
    counts: dict[str, dict[str, int]]
    shards: tuple[ShardEntry, ...]
    skipped: tuple[BadRow, ...]

    def write(self, directory: Path) -> None:
        """Write the manifest, which makes the folder a finished one."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_file(directory / MANIFEST_NAME, json.dumps(content, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "PreparedManifest":
        """Read the manifest of `directory`.

        Raises:
            DataError: no such folder, not finished, damaged, or of another format.
        """
        path = directory / MANIFEST_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _not_there(directory) from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}. Make it readable.") from error
        except ValueError as error:  # not UTF-8 or not JSON
            raise DataError(f"{path} is damaged: {error}. {WAY_OUT}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not the manifest of a prepared folder (format {FORMAT!r}). Check the path.")
        if (version := content.pop("version", None)) != VERSION:
            raise DataError(f"{path} has format version {version!r}, and this program reads {VERSION}. {WAY_OUT}")
        try:
            content["shards"] = tuple(ShardEntry(**entry) for entry in content["shards"])
            content["skipped"] = tuple(BadRow(*row) for row in content["skipped"])
            return cls(**content)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}. {WAY_OUT}") from error


def _not_there(directory: Path) -> DataError:
    if (directory / REQUEST_NAME).exists():
        return DataError(
            f"{directory} is not finished: it has no {MANIFEST_NAME}. Run the `dla-train prepare` that made it again; "
            "it goes on after the last whole shard."
        )
    what = f"it has no {MANIFEST_NAME}" if directory.is_dir() else "no such directory"
    return DataError(f"no prepared tokens at {directory}: {what}. Make them with `dla-train prepare`.")
