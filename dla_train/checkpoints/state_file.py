"""How the state itself is written and read: as one file, or with a further file of each rank beside it (`shards`)."""

import pickle
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dla_train import atomic_files
from dla_train.checkpoints.manifest import DamagedCheckpoint, Manifest, note_checksum
from dla_train.checkpoints.shards import SHARDS, assembled, put_back, shard_path, take_out
from dla_train.errors import RunError

# Without these keys Lightning could not continue, and would fail somewhere along the way.
_NEEDED = ("state_dict", "optimizer_states", "global_step", "callbacks")


class StateFileIO(TorchCheckpointIO):
    """Lightning's file format, written straight to disk and read without unpickling anything.

    Lightning's own writer collects the whole checkpoint in memory first, so that a single file appears complete; here
    the directory around it appears as a whole (`CheckpointStore.new`).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`."""
        _write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values, each tensor whole; anything else is refused, whatever the caller asked for.

        Raises:
            RunError: see `read_state`.
        """
        # Not memory-mapped: optimizers keep the tensors that they are given, and the file may be removed.
        return assembled(_read(Path(path), map_location, mmap=False))


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay on disk, for callers that copy the parts they need: memory-mapped from the file
    `path`, or `Scattered` over the files of several ranks.

    Raises:
        RunError: a file holds more than tensors and plain values, which could be restored only by running code from it;
            or it lacks keys that a run needs to continue.
    """
    return _read(path, None, mmap=True)


def write_shards(checkpoint: dict[str, Any], path: Path, rank: int, world_size: int) -> None:
    """Write this rank's shards beside `path`; rank 0 also writes `path` itself, which holds everything else."""
    rest, shards = take_out(checkpoint)
    _write(shards, shard_path(path, rank, world_size))
    if rank == 0:
        _write({**rest, SHARDS: world_size}, path)


def _write(content: dict[str, Any], path: Path) -> None:
    """Write and sync the file, and note its checksum; each rank syncs its own, as no other node could do it."""
    torch.save(content, path)
    atomic_files.sync(path)
    note_checksum(path)


def _read(path: Path, map_location: Any, mmap: bool) -> dict[str, Any]:
    state = _load(path, map_location, mmap)
    _require_keys(state, path)
    count = state.pop(SHARDS, 0)
    if not count:
        return state
    return put_back(state, [_load(shard_path(path, rank, count), None, mmap=True) for rank in range(count)])


def _load(path: Path, map_location: Any, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} holds more than tensors and plain values, and reading that would run code from the file: "
            "refused. It was not written by dla-train; resume from another checkpoint with --resume PATH."
        ) from error


def _require_keys(state: dict[str, Any], path: Path) -> None:
    if missing := [key for key in _NEEDED if key not in state]:
        try:
            version = Manifest.read(path.parent).packages.get("dla-train", "of another version")
        except DamagedCheckpoint:
            version = "of another version"
        raise RunError(
            f"{path} lacks '{missing[0]}': dla-train {version} wrote it, and this is {metadata.version('dla-train')}. "
            "Go on with the version that wrote it, or from another checkpoint with --resume PATH."
        )


def state_bytes(module: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes of weights, buffers and optimizer state; the checkpoint is only a few thousand bytes larger."""
    tensors = [*module.parameters(), *module.buffers()]
    for optimizer in optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
