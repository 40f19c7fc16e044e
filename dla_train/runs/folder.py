"""The run folder: where everything about one run lies, and who may use it.

recipe.yaml        the resolved recipe         metrics.csv   every step and every validation
environment.json   each start of the run       tensorboard/  the same for TensorBoard
tokenizer.json     a copy                      checkpoints/  step-00000100/, ...
memory.jsonl       how slots are used          logs/run.log  what was said (rank-1.log ...: by further processes)
wandb.json         id at W&B, if it is used    wandb/        W&B's own files
slurm/             of `dla-train submit`       report.md, report.json, loss.png at the end
profile/           traces, if asked for        inspections/  pages, if asked for
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dla_train.errors import UsageError
from dla_train.runs.lock import Lock, exclusive


class RunFolder:
    """Paths inside one run folder.

    Attributes:
        path: the folder, as the user wrote it.
        is_started: whether a run has begun to write here; until then `occupied` may remove what it made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.tokenizer = path / "tokenizer.json"
        self.metrics = path / "metrics.csv"
        self.memory = path / "memory.jsonl"
        self.tensorboard = path / "tensorboard"
        self.wandb_state = path / "wandb.json"
        self.checkpoints = path / "checkpoints"
        self.log = path / "logs" / "run.log"
        self.slurm = path / "slurm"
        self.inspections = path / "inspections"
        self.profile = path / "profile"
        self.report_text = path / "report.md"
        self.report_data = path / "report.json"
        self.loss_picture = path / "loss.png"
        self.lock = path / ".lock"
        self.is_started = False
        self._held: Lock | None = None

    def __str__(self) -> str:
        return str(self.path)

    def log_of(self, rank: int) -> Path:
        """The log file of a rank other than the first."""
        return self.log.with_name(f"rank-{rank}.log")

    def require_held(self) -> None:
        """Refuse to write if another process has taken over the folder, or if it was moved or removed; no effect if
        this process does not hold its lock.

        Raises:
            RunError: says who has, or what became of it.
        """
        if self._held is not None:
            self._held.require_held()

    def is_run(self) -> bool:
        """Whether a run was started here."""
        return self.recipe.is_file() and not self.is_export()

    def is_export(self) -> bool:
        """Whether `dla-train export` made the folder; such a folder also has a recipe, that of the exported run."""
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and config.get("model_type") == "dla"

    def is_foreign(self) -> bool:
        """Whether the folder holds something other than a run: somebody else's files, or an exported model."""
        if self.is_export():
            return True
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except OSError:
            return False
        # A kill at the start of a run leaves the lock file without a recipe.
        return not self.is_run() and self.lock.name not in names and bool(names - {self.slurm.name})


def require_own(folder: RunFolder) -> None:
    """Refuse a place where no run may begin or continue.

    Raises:
        UsageError: it is a file, or holds something other than a run.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"the run folder {folder} is a file. Choose another one with --run-dir.")
    if folder.is_foreign():
        raise UsageError(
            f"{folder} is not empty and holds no run of dla-train. Choose another folder with --run-dir, or empty it."
        )


@contextmanager
def occupied(folder: RunFolder) -> Iterator[None]:
    """Make the folder if need be and hold its lock; if no run starts in it, remove whatever this has made.

    Raises:
        UsageError: the folder cannot be made or written, holds something other than a run, or is in use by another
            process.
    """
    require_own(folder)
    path = folder.path
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    had_lock = folder.lock.exists()  # left by a start that failed
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = exclusive(folder.lock, f"the run folder {path}")
        held = folder._held = lock.__enter__()
    except OSError as error:
        _remove(made)
        raise UsageError(
            f"cannot write the run folder {path}: {error.strerror}. Make it writable, or choose another one with "
            "--run-dir."
        ) from error
    try:
        yield
    finally:
        folder._held = None
        if not folder.is_started and held.is_held():  # what another process has taken over is not ours to remove
            if not folder.is_run() and not had_lock:
                folder.lock.unlink(missing_ok=True)
            _remove(made)
        lock.__exit__(None, None, None)


def _remove(made: list[Path]) -> None:
    """Remove the directories that we made; a parent only if nothing else has appeared in it."""
    if made:
        shutil.rmtree(made[0], ignore_errors=True)
    for parent in made[1:]:
        with contextlib.suppress(OSError):
            parent.rmdir()
