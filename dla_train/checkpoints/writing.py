"""Writing a checkpoint while training continues: its content is copied to main memory, and a thread does the rest."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dla_train.checkpoints.manifest import note_of
from dla_train.checkpoints.shards import Shard, shard_path
from dla_train.checkpoints.store import STATE_NAME
from dla_train.distributed.ranks import Ranks, appears

State = TypeVar("State")


class Writing:
    """One checkpoint that every rank writes its part of; complete when `finish` returns, and invisible until then.

    Args:
        ranks: all ranks; they make this object and call `finish` together.
        directory: a context that rank 0 enters and leaves; gives the folder to write into.
    Raises:
        RunError: the folder cannot be made.
    """

    def __init__(self, ranks: Ranks, directory: AbstractContextManager[Path]) -> None:
        self._ranks = ranks
        self._directory = directory
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._folder = ranks.enter(directory)

    def start(
        self, state: Callable[[], State | None], write: Callable[[State, Path], None], *, in_background: bool
    ) -> None:
        """Take `state()` and `write` it into the folder: at once, or in a thread from a copy in main memory. A rank
        whose state is None writes nothing.

        What either raises is kept for `finish`. Neither may call a collective, because a rank that failed would miss
        it.
        """
        try:
            taken = state()
            if taken is None:
                return
            if in_background:
                arguments = (write, in_main_memory(taken))
                self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
                self._thread.start()
            else:
                write(taken, self._folder)
        except Exception as error:
            self._failure = error

    def is_written(self) -> bool:
        """Whether this rank has written its part."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for every rank's part and make the checkpoint visible.

        Raises:
            RunError: it could not be written; raised on every rank if any rank failed.
        """
        if self._thread is not None:
            self._thread.join()
        # Rank 0 looks at its own files directly.
        files = self._ranks.collect([] if self._ranks.is_first else self._own_files())
        if self._ranks.is_first and self._failure is None:
            try:
                self._require_seen(files)
            except OSError as error:
                self._failure = error
        self._ranks.leave(self._directory, self._failure)

    def _own_files(self) -> list[str]:
        """The files that this rank has written, which is not the first."""
        shard = shard_path(self._folder / STATE_NAME, self._ranks.rank, self._ranks.world_size)
        return [path.name for path in (shard, note_of(shard)) if path.exists()]

    def _require_seen(self, files: list[list[str]]) -> None:
        """Wait until the files of all ranks are visible on this node; an OSError names the first that is not."""
        seen = {path.name for path in self._folder.iterdir()}
        for rank, names in enumerate(files):
            for name in names:
                if name not in seen and not appears(self._folder / name):
                    raise OSError(f"{name}, which rank {rank} has written, does not appear on this node")

    def _write(self, write: Callable[[State, Path], None], state: State) -> None:
        try:
            write(state, self._folder)
        except Exception as error:
            self._failure = error


def in_main_memory(tree: State) -> State:
    """A copy of dicts, lists and tuples that training no longer changes.

    A tensor or shard with several names stays a single one.
    """
    shards: dict[int, Shard] = {}
    tensors: dict[tuple[Any, ...], Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in tensors:
            tensors[place] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return tensors[place]

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return copied(value)
        if isinstance(value, Shard):
            return shards.setdefault(id(value), replace(value, values=copied(value.values)))
        if isinstance(value, dict):
            return {name: copy(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            inner = [copy(each) for each in value]
            return inner if isinstance(value, list) else tuple(inner)
        return value

    return copy(tree)
