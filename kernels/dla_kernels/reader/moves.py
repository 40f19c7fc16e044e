"""How the states go from chunk to chunk: carried by the chunk's transition, moved to their new ages, written to.

S_a <- sum over slots i of final age a: P S_i  +  sum over tokens j of final age a: U_j v_j^T
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.reader.ages import AgeTables, slots_at_start
from dla_kernels.reader.slot_products import by_row
from dla_kernels.reader.transitions import ChunkDocuments

TILE = 16
"""Tokens in a tile of writes. A tile touches few slots, as slots are contiguous in time: there are at most as many
products as tiles and boundaries together."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything about the plan that forward and backward share; none of it is floating-point."""

    tables: AgeTables
    documents: ChunkDocuments | None
    slots: list[int]
    """Per chunk, how many slots to read at its start."""
    writes: list[Writes]
    return_state: bool

    @staticmethod
    def of(tables: AgeTables, documents: ChunkDocuments | None, *, cache_given: bool, return_state: bool) -> Layout:
        return Layout(
            tables=tables,
            documents=documents,
            slots=slots_at_start(tables, cache_given),
            writes=writes_of(tables),
            return_state=return_state,
        )

    def moves(self, n: int) -> bool:
        """Whether the states after chunk n are needed."""
        return self.return_state or n + 1 < len(self.slots)


@dataclass(frozen=True, kw_only=True)
class Writes:
    """The pairs (tile of tokens, slot it writes into) of one chunk.

    Attributes:
        tile: `[P]` into the `[B H C/TILE]` tiles. slot: `[P]` into the `[B H M]` slots. member: `[P, TILE, 1]`, 1 where
            the token is in that slot.
    """

    tile: Tensor
    slot: Tensor
    member: Tensor


def writes_of(tables: AgeTables) -> list[Writes]:
    """Per chunk, the (tile, slot) pairs that occur: about tiles plus boundaries of them, not tiles times slots."""
    batch, heads, chunks, size, capacity = tables.old.shape
    tile = TILE if size % TILE == 0 else size
    ages = tables.inner[..., -1, :].movedim(2, 0).reshape(chunks, batch * heads, size // tile, tile)
    touched = torch.zeros((*ages.shape[:-1], capacity), dtype=torch.bool, device=ages.device)
    touched.scatter_(-1, ages, True)
    n, row, column, slot = touched.nonzero(as_tuple=True)
    member = (ages[n, row, column] == slot[:, None])[..., None]
    counts = torch.bincount(n, minlength=chunks).tolist()
    parts = zip(
        (row * (size // tile) + column).split(counts),
        (row * capacity + slot).split(counts),
        member.split(counts),
        strict=True,
    )
    return [Writes(tile=t, slot=s, member=m) for t, s, m in parts]


class Moves:
    """How chunk n turns the states before it into those after it, and the adjoint of that."""

    def __init__(self, layout: Layout, write: Tensor, carry: Tensor, v: Tensor) -> None:
        """write `[R, N, C, K]`, carry `[R, N]` or `[R, N, K, K]`, v `[R, N, C, V]`."""
        self.layout, self.write, self.carry, self.v = layout, write, carry, v
        rows, capacity = write.shape[0], layout.tables.old.shape[-1]
        self.size = write.shape[2]
        self.tile = TILE if self.size % TILE == 0 else self.size
        final = by_row(layout.tables.old[..., -1, :])  # [R, N, M]: the age at the chunk's end of the slot of age i
        self.target = final + capacity * torch.arange(rows, device=final.device)[:, None, None]

    def _tiles(self, x: Tensor, n: int) -> Tensor:
        """Token vectors `[R, N, C, D]` of chunk n as tiles `[R C/TILE, TILE, D]`."""
        return x[:, n].reshape(-1, self.tile, x.shape[-1])

    def forward(self, states: Tensor, n: int) -> Tensor:
        """`[R, M, K, V]` -> `[R, M, K, V]`."""
        after = torch.zeros_like(states)
        flat = after.view(-1, states.shape[2], states.shape[3])
        slots = self.layout.slots[n]
        if slots:
            carried = self._carry(states[:, :slots], n)
            flat.index_add_(0, self.target[:, n, :slots].flatten(), carried.flatten(0, 1))
        pairs = self.layout.writes[n]
        keys = self._tiles(self.write, n)[pairs.tile] * pairs.member
        written = keys.transpose(-1, -2) @ self._tiles(self.v, n)[pairs.tile]  # [K, TILE] @ [TILE, V] -> [K, V]
        flat.index_add_(0, pairs.slot, written)
        return after

    def backward(self, dafter: Tensor, before: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Adjoint of `forward` for chunk n: the gradients of before, carry, write and v from that of after."""
        dbefore = self.backward_states(dafter, n)
        slots = self.layout.slots[n]
        dmoved = self._gathered(dafter, n)
        old = before[:, :slots]
        if self.carry.ndim == 2:
            dcarry = (dmoved * old).sum((1, 2, 3))
        else:
            dcarry = torch.einsum("rmkv,rmlv->rkl", dmoved, old)
        pairs = self.layout.writes[n]
        dwritten = dafter.flatten(0, 1)[pairs.slot]  # [P, K, V]
        values = self._tiles(self.v, n)[pairs.tile] * pairs.member
        keys = self._tiles(self.write, n)[pairs.tile] * pairs.member
        dwrite = self._from_tiles(values @ dwritten.transpose(-1, -2), pairs)  # [TILE, V] @ [V, K] -> [TILE, K]
        dv = self._from_tiles(keys @ dwritten, pairs)  # [TILE, K] @ [K, V] -> [TILE, V]
        return dbefore, dcarry, dwrite, dv

    def backward_states(self, dafter: Tensor, n: int) -> Tensor:
        """`P^T` applied to the adjoint at each slot's final age; zero for slots that did not exist before."""
        dbefore = torch.zeros_like(dafter)
        slots = self.layout.slots[n]
        if slots:
            dbefore[:, :slots] = self._carry(self._gathered(dafter, n), n, transposed=True)
        return dbefore

    def columns(self, dchange: Tensor, n: int) -> Tensor:
        """`[R, C]`: `U_j^T dE v_j`, with dE the second adjoint of the slot that token j is in at the chunk's end."""
        pairs = self.layout.writes[n]
        keys = self._tiles(self.write, n)[pairs.tile] * pairs.member
        seen = keys @ dchange.flatten(0, 1)[pairs.slot]  # [TILE, K] @ [K, V] -> [TILE, V]
        products = (seen * self._tiles(self.v, n)[pairs.tile]).sum(-1, keepdim=True)
        return self._from_tiles(products, pairs)[..., 0]

    def _gathered(self, dafter: Tensor, n: int) -> Tensor:
        """`[R, m, K, V]`: for each slot that existed before the chunk, the adjoint at its final age."""
        target = self.target[:, n, : self.layout.slots[n]]
        return dafter.flatten(0, 1)[target]

    def _carry(self, states: Tensor, n: int, *, transposed: bool = False) -> Tensor:
        if self.carry.ndim == 2:
            return self.carry[:, n, None, None, None] * states
        carry = self.carry[:, n, None]
        return (carry.transpose(-1, -2) if transposed else carry) @ states  # [K, K] @ [K, V] -> [K, V]

    def _from_tiles(self, x: Tensor, pairs: Writes) -> Tensor:
        """Sums `[P, TILE, D]` over the slots of each tile -> `[R, C, D]`; a token is a member of one slot only."""
        rows = self.write.shape[0]
        total = x.new_zeros(rows * self.size // self.tile, self.tile, x.shape[-1])
        return total.index_add_(0, pairs.tile, x).view(rows, self.size, x.shape[-1])
