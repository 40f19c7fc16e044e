"""`manifest.json`: which run and step a checkpoint belongs to, and how to tell that it is intact."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from dla_train.data.consumed import Consumed

FORMAT = "dla-checkpoint"
VERSION = 1  # to be raised when an older reader would misread the files
MANIFEST_NAME = "manifest.json"
_NOTE = ".sha256"


class DamagedCheckpoint(Exception):
    """A checkpoint is not what its manifest says; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must agree between a checkpoint and the run that continues from it.

    Attributes:
        recipe: the resolved recipe as plain values; its `model` section is the architecture.
        data: fingerprints of the tokenizer, the training tokens and the validation tokens.
        world_size: number of processes that trained.
        strategy: how the state is laid out on disk; `single` is one file.
    """

    recipe: dict[str, Any]
    data: dict[str, str]
    world_size: int = 1
    strategy: str = "single"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        step: finished optimizer steps.
        identity: of the run that wrote it.
        fingerprints: of the whole recipe and of its model section, for people and for quick comparison.
        consumed: what the run has read. None in old checkpoints, which did not record it: then every step read the
            recipe's batch.
        files: size and SHA-256 of every other file, by path inside the checkpoint.
    """

    step: int
    identity: RunIdentity
    fingerprints: dict[str, str]
    files: dict[str, dict[str, Any]]
    consumed: Consumed | None = None
    saved: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    packages: dict[str, str] = field(
        default_factory=lambda: {name: metadata.version(name) for name in ("dla-train", "torch", "lightning")}
    )

    def to_json(self) -> str:
        """The text of `manifest.json`, which `read` reads."""
        content = asdict(self)
        head = {"format": FORMAT, "version": VERSION, "checksum": checksum(content)}
        return json.dumps({**head, **content}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the checkpoint `folder`.

        Raises:
            DamagedCheckpoint: the manifest is missing, not JSON, of another format or version, or was changed.
        """
        try:
            content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{MANIFEST_NAME} is missing") from error
        except ValueError as error:
            raise DamagedCheckpoint(f"{MANIFEST_NAME} is not JSON ({error})") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise DamagedCheckpoint(f"{MANIFEST_NAME} is not that of a checkpoint of dla-train")
        if (version := content.pop("version", None)) != VERSION:
            raise DamagedCheckpoint(f"it has format version {version}, and this program reads {VERSION}")
        # Early manifests had no checksum.
        if (noted := content.pop("checksum", None)) is not None and noted != checksum(content):
            raise DamagedCheckpoint(f"the content of {MANIFEST_NAME} does not match its checksum")
        try:
            identity = RunIdentity(**content.pop("identity"))
            consumed = content.pop("consumed", None)
            return cls(**content, identity=identity, consumed=consumed and Consumed(**consumed))
        except (TypeError, KeyError) as error:
            raise DamagedCheckpoint(
                f"{MANIFEST_NAME} does not have the fields of version {VERSION} ({error})"
            ) from error

    def check_files(self, folder: Path) -> None:
        """Compare every file with its record: sizes first, because that is quick, then content.

        Raises:
            DamagedCheckpoint: names the first file that is missing, short or changed.
        """
        for name, record in self.files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DamagedCheckpoint(f"{MANIFEST_NAME} names the file {name}, which lies outside")
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{name} is missing")
            if (size := path.stat().st_size) != record["bytes"]:
                raise DamagedCheckpoint(f"{name} has {size:,} bytes instead of {record['bytes']:,}")
        for name, record in self.files.items():
            if sha256(folder / name) != record["sha256"]:
                raise DamagedCheckpoint(f"the content of {name} does not match its checksum")


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's own fields, independent of the JSON layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def note_checksum(path: Path) -> None:
    """Write the SHA-256 of `path` beside it for `describe_files`, so that each rank reads only its own file, all ranks
    at the same time."""
    note_of(path).write_text(sha256(path), encoding="ascii")


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`; removes the notes of `note_checksum`."""
    described: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != _NOTE):
        note = note_of(path)
        digest = note.read_text(encoding="ascii") if note.is_file() else sha256(path)
        described[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
        note.unlink(missing_ok=True)
    return described


def note_of(path: Path) -> Path:
    """The file that `note_checksum` writes the checksum of `path` to."""
    return path.with_name(path.name + _NOTE)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def architecture(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plain recipe that decides which tensors a checkpoint holds."""
    return dict(recipe["model"])
