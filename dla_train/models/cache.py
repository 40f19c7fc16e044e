"""What a model remembers between two calls on the same sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dla_kernels


@dataclass(frozen=True, kw_only=True)
class LinearCache:
    """The past of one linear mixer. Its size does not depend on the number of tokens.

    Attributes:
        conv: `[B, conv_width - 1, channels]`, the last inputs of the short convolution.
        slots: the states of the op.
    """

    conv: Tensor
    slots: dla_kernels.Cache


@dataclass(frozen=True, kw_only=True)
class AttentionCache:
    """The past of one softmax attention: all of it, or as much as its window still reads.

    Attributes:
        k, v: `[B, key heads, kept tokens, head width]`, keys already rotated by their positions.
        tokens: how many tokens of each sequence the layer has seen.
    """

    k: Tensor
    v: Tensor
    tokens: int


MixerCache = LinearCache | AttentionCache


@dataclass(frozen=True, kw_only=True)
class ModelCache:
    """The past of a whole model. It is never changed in place unless it is `donated`, so an old cache stays usable.

    Attributes:
        layers: one cache per block.
        tokens: how many tokens of each sequence the model has seen; after `joined`, those of the longest.
    """

    layers: tuple[MixerCache, ...]
    tokens: int

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return next(_tensors(self.layers)).shape[0]

    @property
    def bytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self.layers))

    @staticmethod
    def joined(parts: Sequence[ModelCache]) -> ModelCache:
        """One cache of the sequences of several, in that order; with linear mixers their lengths may differ.

        Raises:
            ValueError: `parts` is empty, or softmax attention has seen sequences of different lengths.
        """
        if not parts:
            raise ValueError("there are no caches to join; give at least one")
        lengths = {part.tokens for part in parts}
        if len(lengths) > 1 and any(isinstance(layer, AttentionCache) for layer in parts[0].layers):
            raise ValueError(
                f"these caches of softmax attention have seen {sorted(lengths)} tokens; only those of equal length can "
                "be joined"
            )
        parts = [part._with_slots(dla_kernels.Cache.settled) for part in parts]
        layers = tuple(_joined([part.layers[index] for part in parts]) for index in range(len(parts[0].layers)))
        return ModelCache(layers=layers, tokens=max(lengths))

    def rows(self, index: Tensor) -> ModelCache:
        """The cache of the sequences `index` `[n]` (int64), in that order: drop finished ones, or repeat one."""
        return dataclasses.replace(self, layers=_map(self.layers, lambda tensor: tensor.index_select(0, index)))

    def donated(self) -> ModelCache:
        """The same past, given up to the next call, which may overwrite its states in place
        (`dla_kernels.Cache.donated`): use it only once."""
        return self._with_slots(dla_kernels.Cache.donated)

    def _with_slots(self, change: Callable[[dla_kernels.Cache], dla_kernels.Cache]) -> ModelCache:
        layers = (
            dataclasses.replace(layer, slots=change(layer.slots)) if isinstance(layer, LinearCache) else layer
            for layer in self.layers
        )
        return dataclasses.replace(self, layers=tuple(layers))


def _tensors(node: Any) -> Iterator[Tensor]:
    """Every tensor below `node`, a tensor, tuple, dataclass or anything else."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, tuple):
        for part in node:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from _tensors(getattr(node, field.name))


def _map(node: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`node` with `change` applied to every tensor below it; the first dimension of each counts sequences."""
    if isinstance(node, Tensor):
        return change(node)
    if isinstance(node, tuple):
        return tuple(_map(part, change) for part in node)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        parts = {field.name: _map(getattr(node, field.name), change) for field in dataclasses.fields(node)}
        return dataclasses.replace(node, **parts)
    return node


def _joined(nodes: Sequence[Any]) -> Any:
    """Nodes of equal structure as one, with their tensors concatenated along the first dimension."""
    parts = [_tensors(node) for node in nodes]
    return _map(nodes[0], lambda _: torch.cat([next(part) for part in parts]))
