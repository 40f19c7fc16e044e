"""The `checkpoints/` folder of a run: directories such as `step-00000100` that are either complete or absent.

A checkpoint is written under a hidden name, synced to disk, described by a manifest, and then renamed. What a kill
leaves behind has a hidden name, is never read, and is removed at the next start. Damaged checkpoints are recognized by
size and checksum.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dla_train import atomic_files
from dla_train.checkpoints.config import CheckpointConfig
from dla_train.checkpoints.manifest import (
    MANIFEST_NAME,
    DamagedCheckpoint,
    Manifest,
    RunIdentity,
    architecture,
    describe_files,
)
from dla_train.config.show import fingerprint_of_plain
from dla_train.data.consumed import Consumed
from dla_train.errors import RunError

STATE_NAME = "state.ckpt"
"""What Lightning's strategy writes inside a checkpoint."""

_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED = ".unfinished-"
_SET_ASIDE = "damaged-"
_ROOM_BESIDE = 16 * 2**20  # bytes that a save leaves free for metrics and logs


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; `folder` holds `STATE_NAME` and the manifest."""

    step: int
    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Checkpoint | None":
        """The checkpoint at `folder`, whose step is read from its name; None if the name is not that of a
        checkpoint."""
        match = _NAME.fullmatch(folder.name)
        return cls(int(match[1]), folder) if match else None

    @property
    def state(self) -> Path:
        """What to hand to Lightning."""
        return self.folder / STATE_NAME

    def verify(self) -> Manifest:
        """Read and check every file, and return the manifest.

        Raises:
            DamagedCheckpoint: says why.
            RunError: the files cannot be read, which says nothing about whether the checkpoint is sound.
        """
        if self.folder.is_file():
            raise DamagedCheckpoint("it is a file, and a checkpoint is a directory")
        try:
            manifest = Manifest.read(self.folder)
            manifest.check_files(self.folder)
        except OSError as error:
            raise RunError(f"cannot read the checkpoint {self.folder}: {error.strerror} ({error.filename}).") from error
        if manifest.step != self.step:
            raise DamagedCheckpoint(f"its manifest says step {manifest.step}")
        return manifest


class CheckpointStore:
    """The checkpoints of one run. Only one process may hold it (the lock of the run folder).

    Args:
        folder: of the checkpoints. require_held: raises if the run folder is not this process's any more; called before
            a checkpoint is begun, appears or is removed.
    """

    def __init__(self, folder: Path, require_held: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self._require_held = require_held

    def all(self) -> list[Checkpoint]:
        """Every checkpoint, sound or not, the newest first."""
        if not self.folder.is_dir():
            return []
        found = (Checkpoint.at(path) for path in self.folder.iterdir())
        return sorted((one for one in found if one is not None), key=lambda one: -one.step)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether `checkpoint` is one of this run's, and not of a run that this one branches off from."""
        return checkpoint.folder.resolve().parent == self.folder.resolve()

    @contextmanager
    def new(self, step: int, identity: RunIdentity, consumed: Consumed | None = None) -> Iterator[Path]:
        """Yield an empty directory that becomes the checkpoint of `step` when the block ends; removed if the block
        raises.

        Args:
            step: number of finished steps. identity: of the run. consumed: what the run has read by then.

        Raises:
            RunError: the checkpoint cannot be written (no space, no permission), or another process has taken over the
                folder.
        """
        target = self.folder / f"step-{step:08d}"
        # The name is unique: a process that has taken over the run folder may be writing the same step.
        unfinished = self.folder / f"{_UNFINISHED}{target.name}-{secrets.token_hex(4)}"
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            _seal(unfinished, step, identity, consumed)
            self._require_held()
            if target.exists():  # a damaged one, whose step training has reached again
                self.set_aside(Checkpoint(step, target))
            os.rename(unfinished, target)
            atomic_files.sync(self.folder)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, when the disk is full
            shutil.rmtree(unfinished, ignore_errors=True)
            self._require_held()  # nothing can be written to a folder that was moved
            raise RunError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {str(error).rstrip('.')}. "
                f"{self.last_words()} Make room or permission there, then go on with --resume auto."
            ) from error
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def require_room(self, needed: int) -> None:
        """Refuse to begin a checkpoint of `needed` bytes that will not fit.

        Raises:
            RunError: says what is needed and what is free; or the folder for checkpoints cannot be made, or the run
                folder is another process's, was moved or removed.
        """
        self._require_held()  # first, or a folder that was moved is made anew
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot make {self.folder} for the checkpoints: {error.strerror}. If it is a link, see to it that "
                "what it leads to is there; it must be a directory that can be written."
            ) from error
        free = shutil.disk_usage(self.folder).free
        if free < needed + _ROOM_BESIDE:
            # A smaller `keep_last` alone frees no space: surplus checkpoints are removed only after the next save.
            advice = (
                "Make room there, if need be by removing the oldest checkpoints (a smaller checkpoint.keep_last then "
                "keeps fewer), and go on with --resume auto."
                if self.all()
                else "Make room there, or choose another folder with --run-dir DIR."
            )
            raise RunError(
                f"a checkpoint of {needed / 1e6:,.0f} MB, with room for metrics and logs beside it, needs "
                f"{(needed + _ROOM_BESIDE) / 1e6:,.0f} MB in {self.folder}, where {free / 1e6:,.0f} MB are free. "
                f"{self.last_words()} {advice}"
            )

    def last_words(self) -> str:
        """A sentence that says which checkpoint a run that ends now can be resumed from."""
        newest = self.all()[:1]
        return f"The newest checkpoint is that of step {newest[0].step}." if newest else "There is no checkpoint yet."

    def prune(self, config: CheckpointConfig) -> None:
        """Remove what `config` does not keep."""
        self._require_held()
        for checkpoint in self.all()[config.keep_last :]:
            if config.keep_every is None or checkpoint.step % config.keep_every:
                hidden = self.folder / f"{_UNFINISHED}removed-{checkpoint.folder.name}"
                # Renamed first, so that it disappears at once: a kill in the middle of rmtree would leave half of it.
                os.rename(checkpoint.folder, hidden)
                _remove(hidden)

    def set_aside(self, checkpoint: Checkpoint) -> Path:
        """Rename a damaged checkpoint, so that it is neither tried again nor counted, but can still be examined."""
        aside = self.folder / f"{_SET_ASIDE}{checkpoint.folder.name}"
        _remove(aside)
        os.rename(checkpoint.folder, aside)
        return aside

    def remove_leftovers(self) -> None:
        """Remove what killed processes left half written."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a directory with all that is in it, or what has its name and is none: a file, a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _seal(folder: Path, step: int, identity: RunIdentity, consumed: Consumed | None) -> None:
    """Sync a written checkpoint to disk and describe it; the manifest is written last."""
    for path in folder.rglob("*"):
        atomic_files.sync(path)
    fingerprints = {
        "recipe": fingerprint_of_plain(identity.recipe),
        "architecture": fingerprint_of_plain(architecture(identity.recipe)),
    }
    files = describe_files(folder)
    manifest = Manifest(step=step, identity=identity, consumed=consumed, fingerprints=fingerprints, files=files)
    atomic_files.write_text(folder / MANIFEST_NAME, manifest.to_json())
