"""Tensors of which every rank holds a part: how a checkpoint stores the parts, and how any number of ranks reads them.

A part is a contiguous range of a tensor's elements in row-major order. DeepSpeed cuts flat buffers and FSDP cuts rows,
so both yield such ranges. Each rank writes the ranges that it has to a file of its own; `state.ckpt`, laid out as that
of a single process, has the tensor's shape in their place. Nothing is gathered for a save. A reader (one process,
another number of ranks, or another strategy) takes the ranges that it needs from all files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SHAPE = "shape of shards"  # the key of a placeholder
SHARDS = "shards"
"""Key of `state.ckpt`: the number of files that its tensors lie in; absent if they lie in `state.ckpt` itself."""


@dataclass(frozen=True, eq=False)
class Shard:
    """This rank's part of a tensor.

    Attributes:
        shape: of the whole tensor. start: index of the part's first element. values: `[n]`; n may be 0.
    """

    shape: tuple[int, ...]
    start: int
    values: Tensor


@dataclass(eq=False)
class Scattered:
    """A tensor that lies in several files; nothing is read from disk before it is asked for.

    Attributes:
        name: for errors. shape: of the tensor. parts: `(start, values)`.
    """

    name: str
    shape: tuple[int, ...]
    parts: list[tuple[int, Tensor]] = field(default_factory=list)

    def read(self, start: int, count: int) -> Tensor:
        """The `count` elements from `start` on: `[count]`.

        Raises:
            ValueError: some of them are in no file.
        """
        found: Tensor | None = None
        have = 0
        for begin, values in self.parts:
            first, last = max(start, begin), min(start + count, begin + len(values))
            if first >= last:
                continue
            if found is None:
                found = torch.empty(count, dtype=values.dtype)
            found[first - start : last - start] = values[first - begin : last - begin]
            have += last - first
        if have != count:
            raise ValueError(f"{self.name}: elements {start} to {start + count - 1} are not all in the checkpoint")
        return torch.empty(0) if found is None else found

    def whole(self) -> Tensor:
        """The whole tensor, in its shape."""
        count = torch.Size(self.shape).numel()
        return self.read(0, count).view(self.shape)


def read_part(value: Tensor | Scattered, start: int, count: int) -> Tensor:
    """The `count` elements of a tensor from `start` on, wherever it lies: `[count]`."""
    if isinstance(value, Scattered):
        return value.read(start, count)
    return value.reshape(-1)[start : start + count]


def take_out(tree: Any) -> tuple[Any, dict[str, tuple[int, Tensor]]]:
    """Separate the shards from the rest of a checkpoint.

    Args:
        tree: dicts and lists of tensors, shards and plain values.
    Returns:
        the tree with a placeholder for each shard; and each shard's `(start, values)` by its place in the tree. The
        values are in main memory, in storage of just their size, and shared if a tensor has several names.
    """
    shards: dict[str, tuple[int, Tensor]] = {}
    copies: dict[int, Tensor] = {}

    def replace(leaf: Any, place: str) -> Any:
        if not isinstance(leaf, Shard):
            return leaf
        if id(leaf) not in copies:
            values = leaf.values.detach()
            # A view would be saved with its whole underlying storage.
            is_view = values.untyped_storage().nbytes() > values.numel() * values.element_size()
            copies[id(leaf)] = values.to("cpu", copy=is_view)
        shards[place] = (leaf.start, copies[id(leaf)])
        return {_SHAPE: list(leaf.shape)}

    return _mapped(tree, replace), shards


def put_back(tree: Any, files: list[dict[str, tuple[int, Tensor]]]) -> Any:
    """Undo `take_out`: each placeholder becomes a `Scattered` over the parts that `files`, one per rank, have of it."""

    def replace(leaf: Any, place: str) -> Any:
        if not (isinstance(leaf, dict) and _SHAPE in leaf):
            return leaf
        return Scattered(place, tuple(leaf[_SHAPE]), [tuple(file[place]) for file in files if place in file])  # type: ignore[misc]

    return _mapped(tree, replace)


def assembled(tree: Any) -> Any:
    """The tree with whole tensors in place of scattered ones; a tensor with several names stays a single tensor."""
    wholes: dict[tuple[int, ...], Tensor] = {}

    def replace(leaf: Any, place: str) -> Any:
        if not isinstance(leaf, Scattered):
            return leaf
        same = tuple(values.data_ptr() for _, values in leaf.parts if len(values))
        if same not in wholes:
            wholes[same] = leaf.whole()
        return wholes[same]

    return _mapped(tree, replace)


def shard_path(state: Path, rank: int, world_size: int) -> Path:
    """The file of `rank` beside the file `state`."""
    return state.with_name(f"shard-{rank:05d}-of-{world_size:05d}.ckpt")


def _mapped(tree: Any, replace: Callable[[Any, str], Any], place: str = "") -> Any:
    done = replace(tree, place)
    if done is not tree:
        return done
    if isinstance(tree, dict):
        return {name: _mapped(value, replace, f"{place}/{name}") for name, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, replace, f"{place}/{index}") for index, value in enumerate(tree)]
    return tree
