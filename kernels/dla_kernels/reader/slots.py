"""Reading and carrying the M states from chunk to chunk, with its backward: the expensive half of the chunked reader.

    o_t = sum_j Mx[t, j] L[t, inner[t, j]] v_j + sum_i L[t, old[t, i]] Qe_t S_i
    S_a <- sum over slots i of final age a: P S_i  +  sum over tokens j of final age a: U_j v_j^T

The backward goes through the chunks in reverse with the adjoint of the states, `dS`. States are kept every `STRIDE` chunks and
recomputed in between, since moving them is cheap beside reading them. For a plan with a gate, the same backward carries a second
adjoint with `L[age + 1] - L[age]` in place of `L`: the gradient of gate s is the sum over `t >= s > j` of what one more shift of
token j's slot would change at t, a running sum of row sums less column sums (DESIGN, "Gradients").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dla_kernels.reader.ages import AgeTables, slots_at_start
from dla_kernels.reader.transitions import ChunkDocuments, Transitions

STRIDE = 8
"""Chunks between two kept states."""
TILE = 16
"""Tokens in a tile of writes. Slots are contiguous in time, so a tile touches few: (tiles + boundaries) products in all."""


def read_slots(
    step: Transitions,
    v: Tensor,
    slot_weight: Tensor,
    state: Tensor,
    gate: Tensor | None,
    tables: AgeTables,
    documents: ChunkDocuments | None,
    *,
    cache_given: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """v `[B, H, N, C, V]`, slot_weight `[B, H, N, C, M]`, state `[B, H, M, K, V]`, gate `[B, H, N, C]` or None.

    Returns o `[B, H, N, C, V]` and the state after the last chunk, meaningless without `return_state`.
    """
    layout = _Layout.of(tables, documents, cache_given=cache_given, return_state=return_state)
    return _ReadSlots.apply(step.within, step.read, step.write, step.carry, v, slot_weight, state, gate, layout)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Everything about the plan that forward and backward share; no floating-point values."""

    tables: AgeTables
    documents: ChunkDocuments | None
    slots: list[int]
    """Per chunk, how many slots to read at its start."""
    writes: list[_Writes]
    return_state: bool

    @staticmethod
    def of(tables: AgeTables, documents: ChunkDocuments | None, *, cache_given: bool, return_state: bool) -> _Layout:
        return _Layout(
            tables=tables,
            documents=documents,
            slots=slots_at_start(tables, cache_given),
            writes=_writes(tables),
            return_state=return_state,
        )

    def moves(self, n: int) -> bool:
        """Whether the states after chunk n are needed."""
        return self.return_state or n + 1 < len(self.slots)


@dataclass(frozen=True, kw_only=True)
class _Writes:
    """The pairs (tile of tokens, slot it writes into) of one chunk.

    Attributes:
        tile: `[P]` into the `[B H C/TILE]` tiles. slot: `[P]` into the `[B H M]` slots. member: `[P, TILE, 1]`, 1 where the token is in
            that slot.
    """

    tile: Tensor
    slot: Tensor
    member: Tensor


def _writes(tables: AgeTables) -> list[_Writes]:
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
    return [_Writes(tile=t, slot=s, member=m) for t, s, m in parts]


class _ReadSlots(torch.autograd.Function):
    """Shapes as in `read_slots`; R = B H rows, `within` `[B, H, N, C, C]`, `read` and `write` `[B, H, N, C, K]`."""

    @staticmethod
    def forward(
        ctx: Any,
        within: Tensor,
        read: Tensor,
        write: Tensor,
        carry: Tensor,
        v: Tensor,
        slot_weight: Tensor,
        state: Tensor,
        gate: Tensor | None,
        layout: _Layout,
    ) -> tuple[Tensor, Tensor]:
        read, write, carry, v = (_rows(x) for x in (read, write, carry, v))  # [R, N, C, ...]
        inner_weight = slot_weight.gather(-1, layout.tables.inner)  # L[t, inner[t, j]]
        old_weight = _rows(slot_weight.gather(-1, layout.tables.old))  # L[t, old[t, i]]
        o = _rows(within * inner_weight) @ v  # [C, C] @ [C, V] -> [C, V]
        moves = _Moves(layout, write, carry, v)
        states = state.flatten(0, 1)  # [R, M, K, V]
        kept = []
        for n, slots in enumerate(layout.slots):
            if n % STRIDE == 0:
                kept.append(states)
            if slots:
                weighted = _weighted(old_weight[:, n, :, :slots], read[:, n])  # [C, m K]
                o[:, n] += weighted @ _tall(states[:, :slots])  # [C, m K] @ [m K, V] -> [C, V]
            if layout.moves(n):
                states = moves.forward(states, n)
        ctx.save_for_backward(within, read, write, carry, v, slot_weight, gate, *kept)
        ctx.layout = layout
        shape = (*within.shape[:4], v.shape[-1])
        return o.view(shape), states.view(state.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout: _Layout = ctx.layout
        within, read, write, carry, v, slot_weight, gate, *kept = ctx.saved_tensors
        do, dstate = _rows(grads[0]), grads[1].flatten(0, 1).clone()
        inner_weight = slot_weight.gather(-1, layout.tables.inner)
        old_weight = _rows(slot_weight.gather(-1, layout.tables.old))

        # tokens of the same chunk
        pairs = (do @ v.transpose(-1, -2)).view_as(within)  # [C, V] @ [V, C] -> [C, C]: do_t . v_j
        dwithin = pairs * inner_weight
        dinner_weight = pairs * within
        dv = _rows(within * inner_weight).transpose(-1, -2) @ do  # [C, C]^T @ [C, V] -> [C, V]
        dread, dwrite, dcarry = torch.zeros_like(read), torch.zeros_like(write), torch.zeros_like(carry)
        dold_weight = torch.zeros_like(old_weight)

        older = None
        if gate is not None:
            older = _OlderWeights(slot_weight, layout.tables)
            change = dinner_weight * (slot_weight.gather(-1, older.inner_age) - inner_weight)
            rows, columns = _rows(change.sum(-1)), _rows(change.sum(-2))
            dchange = torch.zeros_like(dstate)

        moves = _Moves(layout, write, carry, v)
        for first in reversed(range(0, len(layout.slots), STRIDE)):
            last = min(first + STRIDE, len(layout.slots))
            states = [kept[first // STRIDE]]
            for n in range(first, last - 1):
                states.append(moves.forward(states[-1], n))
            for n in reversed(range(first, last)):
                slots, before = layout.slots[n], states.pop()
                if layout.moves(n):
                    if older is not None:
                        columns[:, n] += moves.columns(dchange, n)
                        dchange = moves.backward_states(dchange, n)
                    dstate, dcarry[:, n], dwrite[:, n], from_states = moves.backward(dstate, before, n)
                    dv[:, n] += from_states
                if slots:
                    seen = do[:, n] @ _tall(before[:, :slots]).transpose(-1, -2)  # [C, V] @ [V, m K] -> [C, m K]
                    seen = seen.unflatten(-1, (slots, -1))
                    weight = old_weight[:, n, :, :slots]
                    dread[:, n] = (weight[..., None, :] @ seen)[..., 0, :]
                    by_slot = (seen @ read[:, n, :, :, None])[..., 0]
                    dold_weight[:, n, :, :slots] = by_slot
                    _add_outer(dstate, weight, read[:, n], do[:, n])
                    if older is not None:
                        extra = older.old_change[:, n, :, :slots]
                        rows[:, n] += (by_slot * extra).sum(-1)
                        _add_outer(dchange, extra, read[:, n], do[:, n])
        dslot_weight = torch.zeros_like(slot_weight)
        dslot_weight.scatter_add_(-1, layout.tables.inner, dinner_weight)
        dslot_weight.scatter_add_(-1, layout.tables.old, dold_weight.view(layout.tables.old.shape))
        dgate = None
        if gate is not None:
            dgate = _sums_to_end((rows - columns).view(gate.shape), layout.documents)
        shape = within.shape[:3]
        return (
            dwithin,
            dread.unflatten(0, shape[:2]),
            dwrite.unflatten(0, shape[:2]),
            dcarry.unflatten(0, shape[:2]),
            dv.unflatten(0, shape[:2]),
            dslot_weight,
            dstate.unflatten(0, shape[:2]),
            dgate,
            None,
        )


class _Moves:
    """How chunk n turns the states before it into those after it, and the adjoint of that."""

    def __init__(self, layout: _Layout, write: Tensor, carry: Tensor, v: Tensor) -> None:
        """write `[R, N, C, K]`, carry `[R, N]` or `[R, N, K, K]`, v `[R, N, C, V]`."""
        self.layout, self.write, self.carry, self.v = layout, write, carry, v
        rows, capacity = write.shape[0], layout.tables.old.shape[-1]
        self.size = write.shape[2]
        self.tile = TILE if self.size % TILE == 0 else self.size
        final = _rows(layout.tables.old[..., -1, :])  # [R, N, M]: the age at the chunk's end of the slot of age i
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
        """Adjoint of `forward`: d before, d carry, d write, d v from d after, all of chunk n."""
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
        """`P^T` applied to the adjoint of each slot's final age; zero for slots that did not exist."""
        dbefore = torch.zeros_like(dafter)
        slots = self.layout.slots[n]
        if slots:
            dbefore[:, :slots] = self._carry(self._gathered(dafter, n), n, transposed=True)
        return dbefore

    def columns(self, dchange: Tensor, n: int) -> Tensor:
        """`[R, C]`: `U_j^T dE v_j`, with dE the second adjoint of the slot that token j ends the chunk in."""
        pairs = self.layout.writes[n]
        keys = self._tiles(self.write, n)[pairs.tile] * pairs.member
        seen = keys @ dchange.flatten(0, 1)[pairs.slot]  # [TILE, K] @ [K, V] -> [TILE, V]
        products = (seen * self._tiles(self.v, n)[pairs.tile]).sum(-1, keepdim=True)
        return self._from_tiles(products, pairs)[..., 0]

    def _gathered(self, dafter: Tensor, n: int) -> Tensor:
        """`[R, m, K, V]`: for each slot that existed, the adjoint at its final age."""
        target = self.target[:, n, : self.layout.slots[n]]
        return dafter.flatten(0, 1)[target]

    def _carry(self, states: Tensor, n: int, *, transposed: bool = False) -> Tensor:
        if self.carry.ndim == 2:
            return self.carry[:, n, None, None, None] * states
        carry = self.carry[:, n, None]
        return (carry.transpose(-1, -2) if transposed else carry) @ states  # [K, K] @ [K, V] -> [K, V]

    def _from_tiles(self, x: Tensor, pairs: _Writes) -> Tensor:
        """Sums `[P, TILE, D]` over the slots of a tile -> `[R, C, D]`; each token is a member of one."""
        rows = self.write.shape[0]
        total = x.new_zeros(rows * self.size // self.tile, self.tile, x.shape[-1])
        return total.index_add_(0, pairs.tile, x).view(rows, self.size, x.shape[-1])


class _OlderWeights:
    """What the weights would be if every slot were one older: ages `min(age + 1, M - 1)`."""

    def __init__(self, slot_weight: Tensor, tables: AgeTables) -> None:
        oldest = slot_weight.shape[-1] - 1
        self.inner_age = (tables.inner + 1).clamp_(max=oldest)
        older = slot_weight.gather(-1, (tables.old + 1).clamp_(max=oldest))
        self.old_change = _rows(older - slot_weight.gather(-1, tables.old))


def _sums_to_end(x: Tensor, documents: ChunkDocuments | None) -> Tensor:
    """Sums of `x` `[B, H, N, C]` from each token to the end of its document."""
    flat = x.flatten(2)
    sums = flat.flip(-1).cumsum(-1).flip(-1)
    if documents is not None:
        after = torch.cat((sums[..., 1:], torch.zeros_like(sums[..., :1])), -1)
        sums = sums - after[..., documents.last.flatten()]
    return sums.view_as(x)


def _weighted(weight: Tensor, vectors: Tensor) -> Tensor:
    """`[w_1 * Qe, ..., w_m * Qe]`: weight `[R, C, m]`, vectors `[R, C, K]` -> `[R, C, m K]`."""
    return (weight[..., None] * vectors[..., None, :]).flatten(2)


def _tall(states: Tensor) -> Tensor:
    """`[S_1; ...; S_m]`: `[R, m, K, V]` -> `[R, m K, V]`."""
    return states.flatten(1, 2)


def _add_outer(total: Tensor, weight: Tensor, vectors: Tensor, do: Tensor) -> None:
    """`total[i] += sum_t weight[t, i] Qe_t^T do_t`: `[m K, C] @ [C, V]`, in place on `[R, M, K, V]`."""
    slots = weight.shape[-1]
    product = _weighted(weight, vectors).transpose(-1, -2) @ do
    total[:, :slots] += product.unflatten(1, (slots, -1))


def _rows(x: Tensor) -> Tensor:
    """`[B, H, ...]` -> `[R, ...]`."""
    return x.flatten(0, 1)
