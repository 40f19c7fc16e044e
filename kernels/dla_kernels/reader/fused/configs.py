"""Sizes of tiles: chosen by shape, type and GPU, never by the number of tokens.

A small table rather than autotuning: packed data changes its number of tokens, chunks and documents with every batch,
and a tuner keyed on any of them would tune forever. Sizes that `python -m dla_kernels.tune` has measured on a GPU of
the same architecture come first (measured.py); a rule serves every other shape. `override` is for tests and for the
tuner.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from dla_kernels.reader.fused.measured import Layer, architecture_of, measured_sizes

FROM_SHARED_MEMORY = {"sm_90", "sm_100", "sm_103"}
"""Hopper and the Blackwells of data centers, whose tensor cores read their factors from shared memory."""

MOST_REGISTERS = 255
"""The most registers that a thread can have."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Attributes:
    tile: tokens in a tile, TILE. long: tokens in a chunk, LONG, a multiple of it.
    block_k, block_v: the part of K and of V that one product takes.
    warps: of the kernels with products. At most 4: see TRITON-PITFALLS.md.
    stages: how many loads of a loop are in flight at once (`num_stages`).
    registers: the most that a thread of a kernel of pairs may have. With 168, three programs share a multiprocessor;
        with more, two.
    """

    tile: int
    long: int
    block_k: int
    block_v: int
    warps: int = 4
    stages: int = 3
    registers: int = MOST_REGISTERS

    @property
    def rows(self) -> int:
        """Tokens that read the slots of their chunk together: more than a tile, because each such block of tokens loads
        all states."""
        return min(max(self.tile, 128), self.long)

    def limits(self, *, summed: int = 1) -> dict[str, int]:
        """Compiler options for a kernel of pairs: its register limit. None if there is no limit, or if products are
        `summed` over several blocks: their loads in flight would not fit in fewer registers."""
        return {} if self.registers >= MOST_REGISTERS or summed > 1 else {"maxnreg": self.registers}


_overrides: list[dict[str, int]] = []
"""For the whole process, innermost last, and not per thread: on a GPU, autograd runs backward passes in its own
threads."""


@contextmanager
def override(**sizes: int) -> Iterator[None]:
    """Within the context, sizes given by the names of `Tiles` replace those chosen (and those of a context around it), in
    every thread."""
    _overrides.append(sizes)
    try:
        yield
    finally:
        _overrides[:] = [other for other in _overrides if other is not sizes]


def tiles_for(
    key_dim: int, value_dim: int, slots: int, dtype: torch.dtype, device: torch.device, *, delta: bool
) -> Tiles:
    """The sizes to use for one shape: overridden, else measured on this architecture, else by rule."""
    layer = Layer(
        key_dim=key_dim, value_dim=value_dim, slots=slots, type=str(dtype).removeprefix("torch."), delta=delta
    )
    chosen = _rule(key_dim, value_dim, slots, dtype, delta=delta)
    tight = dtype == torch.float32 or factors_in_registers(device)
    # carried_rows.py keeps a tile's rows, all of K, in registers; kernels of pairs keep a tile's weights, all of M
    rows_spill = delta and (dtype == torch.float32 or (tight and key_dim > 192))
    if rows_spill or (tight and slots > 32):
        chosen = replace(chosen, tile=32)
    if delta and factors_in_registers(device):
        # two blocks for V of 33..64: a single one is no loop, and weights_backward.py would load all factors before it
        # needs them
        chosen = replace(chosen, block_v=min(chosen.block_v, max(32, _block(value_dim) // 2)))
    chosen = replace(chosen, registers=registers_by_rule(dtype, device))
    return _overridden(replace(chosen, **measured_sizes(layer, architecture_of(device))))


def tiles_by_rule(key_dim: int, value_dim: int, slots: int, dtype: torch.dtype, *, delta: bool) -> Tiles:
    """The sizes that hold for every GPU: the starting point of tuning, and those of the segmentation, which is not
    tuned."""
    return _overridden(_rule(key_dim, value_dim, slots, dtype, delta=delta))


def registers_by_rule(dtype: torch.dtype, device: torch.device) -> int:
    """The register limit by rule. Two programs on a multiprocessor wait most of the time, and their loops hardly miss
    the registers that a third one takes. But if tensor cores take factors from registers, or in float32, there are none
    to spare."""
    from_shared_memory = architecture_of(device) in FROM_SHARED_MEMORY
    return 168 if dtype != torch.float32 and from_shared_memory else MOST_REGISTERS


def factors_in_registers(device: torch.device) -> bool:
    """Whether tensor cores take their factors from registers (`mma.sync`), which leaves fewer for everything else."""
    architecture = architecture_of(device)
    return architecture is not None and architecture.startswith("sm_") and architecture not in FROM_SHARED_MEMORY


def _overridden(tiles: Tiles) -> Tiles:
    for sizes in _overrides:
        tiles = replace(tiles, **sizes)
    return tiles


def _rule(key_dim: int, value_dim: int, slots: int, dtype: torch.dtype, *, delta: bool) -> Tiles:
    # float32 products run on the slow units and need twice the registers: half the block.
    widest = 32 if dtype == torch.float32 else 64
    return Tiles(
        tile=64,
        long=_chunk(slots * key_dim * value_dim, delta=delta),
        block_k=min(widest, _block(key_dim)),
        block_v=min(widest, _block(value_dim)),
    )


def _chunk(state: int, *, delta: bool) -> int:
    """Tokens in a chunk, if the states of a head have `state` = M K V numbers.

    States cost memory and bandwidth: M K V / LONG numbers per token and head. Pairs of tokens cost instructions: LONG /
    2 pairs per token. Counted for a training step with plain decay on a GPU with 3 TB/s, the total is least near LONG =
    1,200 for 2^18 numbers, and near half of that for a quarter as many. With the delta rule, pairs cost more because
    they need chunk algebra, and so do states, because each launch carries them by only one chunk.
    """
    if delta:
        return 1024 if state > 2**19 else 512 if state > 2**17 else 256
    return 1024 if state > 2**16 else 512 if state > 2**14 else 256


def _block(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def inner_block(size: int, tiles: Tiles) -> int:
    """The part of K that one product takes if nothing else depends on the cut: one block of 128 instead of two of
    64."""
    return 128 if 64 < size <= 128 and tiles.block_k == 64 else tiles.block_k


def key_blocks(key_dim: int) -> tuple[int, int]:
    """All of K in two blocks, powers of two that tensor cores take; the second is 0 where one is enough."""
    first = max(16, min(128, 1 << (key_dim.bit_length() - 1)))
    rest = max(0, key_dim - first)
    return first, 0 if rest == 0 else _block(rest)


def exact_products(dtype: torch.dtype) -> str:
    """The precision of products in kernels that hold all of K. float32 products on the ordinary units would take more
    registers than there are, so three tf32 products serve, which are as accurate. 16-bit factors are multiplied
    directly."""
    return "tf32x3" if dtype == torch.float32 and torch.version.hip is None else "ieee"
