"""The manifest of a token file: what it holds, who made it, and how to tell that it is whole."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from dla_data.errors import DataError, unreadable

MANIFEST_NAME = "manifest.json"
FORMAT = "dla-tokens"
VERSION = 1  # raise it when an older reader would misread the files

WAY_OUT = "Delete the directory and prepare the corpus again."


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TokenManifest:
    """What `manifest.json` says.

    dtype: of the tokens, "uint16" or "uint32", little-endian.
    tokens: all of them, end-of-document tokens included.
    documents: number of documents, each followed by one end-of-document token.
    text_bytes: length of the text in UTF-8 (for losses per byte).
    vocab_size: every token is below it.
    end_of_document: the id that follows each document.
    tokenizer: fingerprint of the tokenizer that made the tokens (`dla_data.tokenizer.tokenizer_fingerprint`).
    source: where the text came from, in words.
    files: by name, all files that belong to the token file except the manifest.
    """

    dtype: str
    tokens: int
    documents: int
    text_bytes: int
    vocab_size: int
    end_of_document: int
    tokenizer: str
    source: str
    files: dict[str, FileRecord]

    @property
    def token_dtype(self) -> np.dtype:
        """The numpy type of `tokens.bin`, the same on machines of either byte order."""
        return np.dtype(self.dtype).newbyteorder("<")

    def write(self, directory: Path) -> None:
        """Write the manifest into `directory`."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        (directory / MANIFEST_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "TokenManifest":
        """Read and check the manifest of `directory`.

        Raises:
            DataError: no such directory or manifest, damaged, of another format or of a later version.
        """
        path = directory / MANIFEST_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            what = f"it has no {MANIFEST_NAME}" if directory.is_dir() else "no such directory"
            raise DataError(f"no token file at {directory}: {what}. Check the path or prepare the corpus.") from error
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:  # not UTF-8 or not JSON
            raise DataError(f"{path} is damaged: {error}. {WAY_OUT}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not the manifest of a token file (format {FORMAT!r}). Check the path.")
        version = content.pop("version", None)
        if version != VERSION:
            raise DataError(
                f"{path} has format version {version!r}, and this program reads {VERSION}. "
                "Use the program that wrote it, or delete the directory and prepare the corpus again."
            )
        return cls._from_content(content, path)

    @classmethod
    def _from_content(cls, content: dict, path: Path) -> "TokenManifest":
        problem = _wrong_type(content, {field.name: field.type for field in fields(cls)})
        records = {}
        if not problem:
            for name, record in content["files"].items():
                is_record = isinstance(record, dict)
                problem = _wrong_type(record, {"bytes": int, "sha256": str}) if is_record else "is no record"
                if problem:
                    problem = f"files, {name}: {problem}"
                    break
                records[name] = FileRecord(**record)
        if not problem and content["dtype"] not in ("uint16", "uint32"):
            problem = f"dtype {content['dtype']!r} is neither uint16 nor uint32"
        if problem:
            raise DataError(f"{path} is damaged: {problem}. {WAY_OUT}")
        return cls(**{**content, "files": records})


def _wrong_type(content: dict, expected: dict) -> str | None:
    """Name the first key that is missing, unknown or of another type; None if all is as expected."""
    for key in sorted(content.keys() | expected.keys()):
        if key not in expected:
            return f"unknown key {key!r}"
        if key not in content:
            return f"key {key!r} is missing"
        kind = dict if key == "files" else expected[key]
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            return f"{key} is {content[key]!r}, expected {kind.__name__}"
        if kind is int and content[key] < 0:
            return f"{key} is {content[key]}, expected 0 or more"
    return None
