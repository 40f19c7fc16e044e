"""How the state itself is written and read, for strategies that keep it in one file."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dla_train.errors import RunError


class StateFileIO(TorchCheckpointIO):
    """Lightning's file format, written straight to disk and read without unpickling anything.

    Lightning's own writer collects the whole checkpoint in memory first, to make a single file appear whole; here the
    directory around it does (`CheckpointStore.new`).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`."""
        torch.save(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values; anything else is refused, whatever the caller asked for.

        Raises:
            RunError: the file holds something else, which only running its code could bring back.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise RunError(
                f"{path} holds more than tensors and plain values, and reading that would run code from the file: "
                "refused. It was not written by dla-train; resume from another checkpoint with --resume PATH."
            ) from error


def state_bytes(module: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Size of weights, buffers and optimizer state, which is that of the checkpoint but for a few thousand bytes."""
    tensors = [*module.parameters(), *module.buffers()]
    for optimizer in optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
