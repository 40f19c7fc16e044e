"""Reading the M states of every chunk, with its backward: the expensive half of the chunked reader.

    o_t = sum_j Mx[t, j] L[t, inner[t, j]] v_j + sum_i L[t, old[t, i]] Qe_t S_i

The backward goes through the chunks in reverse with the adjoint of the states, `dS`. States are kept every `STRIDE`
chunks and recomputed in between, since moving them (moves.py) is cheap beside reading them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_kernels.autocast import without_autocast
from dla_kernels.first_derivatives import first_derivative_only
from dla_kernels.reader.ages import AgeTables
from dla_kernels.reader.boundary_gradient import BoundaryGradient
from dla_kernels.reader.moves import Layout, Moves
from dla_kernels.reader.slot_products import add_outer, by_row, tall, weigh
from dla_kernels.reader.transitions import ChunkDocuments, Transitions

STRIDE = 8
"""The states are kept at every `STRIDE`-th chunk."""


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
    """Reads all chunks: v `[B, H, N, C, V]`, slot_weight `[B, H, N, C, M]`, state `[B, H, M, K, V]`, gate
    `[B, H, N, C]` or None.

    Returns o `[B, H, N, C, V]` and the state after the last chunk, meaningless without `return_state`.
    """
    layout = Layout.of(tables, documents, cache_given=cache_given, return_state=return_state)
    return _ReadSlots.apply(step.within, step.read, step.write, step.carry, v, slot_weight, state, gate, layout)


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
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        read, write, carry, v = (by_row(x) for x in (read, write, carry, v))  # [R, N, C, ...]
        inner_weight = slot_weight.gather(-1, layout.tables.inner)  # L[t, inner[t, j]]
        old_weight = by_row(slot_weight.gather(-1, layout.tables.old))  # L[t, old[t, i]]
        o = by_row(within * inner_weight) @ v  # [C, C] @ [C, V] -> [C, V]
        moves = Moves(layout, write, carry, v)
        states = state.flatten(0, 1)  # [R, M, K, V]
        kept = []
        for n, slots in enumerate(layout.slots):
            if n % STRIDE == 0:
                kept.append(states)
            if slots:
                weighted = weigh(old_weight[:, n, :, :slots], read[:, n])  # [C, m K]
                o[:, n] += weighted @ tall(states[:, :slots])  # [C, m K] @ [m K, V] -> [C, V]
            if layout.moves(n):
                states = moves.forward(states, n)
        # The age tables are large: if they are saved like this, activation checkpointing frees them, too.
        tables = layout.tables.old, layout.tables.inner
        ctx.save_for_backward(within, read, write, carry, v, slot_weight, gate, *tables, *kept)
        ctx.rest = layout.documents, layout.slots, layout.writes, layout.return_state
        shape = (*within.shape[:4], v.shape[-1])
        return o.view(shape), states.view(state.shape)

    @staticmethod
    @first_derivative_only
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        within, read, write, carry, v, slot_weight, gate, old, inner, *kept = ctx.saved_tensors
        documents, slots_of_chunks, writes, return_state = ctx.rest
        layout = Layout(
            tables=AgeTables(old=old, inner=inner),
            documents=documents,
            slots=slots_of_chunks,
            writes=writes,
            return_state=return_state,
        )
        do, dstate = by_row(grads[0]), grads[1].flatten(0, 1).clone()
        inner_weight = slot_weight.gather(-1, layout.tables.inner)
        old_weight = by_row(slot_weight.gather(-1, layout.tables.old))

        # tokens of the same chunk
        pairs = (do @ v.transpose(-1, -2)).view_as(within)  # [C, V] @ [V, C] -> [C, C]: do_t . v_j
        dwithin = pairs * inner_weight
        dinner_weight = pairs * within
        dv = by_row(within * inner_weight).transpose(-1, -2) @ do  # [C, C]^T @ [C, V] -> [C, V]
        dread, dwrite, dcarry = torch.zeros_like(read), torch.zeros_like(write), torch.zeros_like(carry)
        dold_weight = torch.zeros_like(old_weight)

        boundaries = None
        if gate is not None:
            boundaries = BoundaryGradient(slot_weight, dinner_weight, dstate, layout.tables)

        moves = Moves(layout, write, carry, v)
        for first in reversed(range(0, len(layout.slots), STRIDE)):
            last = min(first + STRIDE, len(layout.slots))
            states = [kept[first // STRIDE]]
            for n in range(first, last - 1):
                states.append(moves.forward(states[-1], n))
            for n in reversed(range(first, last)):
                slots, before = layout.slots[n], states.pop()
                if layout.moves(n):
                    if boundaries is not None:
                        boundaries.through_move(moves, n)
                    dstate, dcarry[:, n], dwrite[:, n], from_states = moves.backward(dstate, before, n)
                    dv[:, n] += from_states
                if slots:
                    seen = do[:, n] @ tall(before[:, :slots]).transpose(-1, -2)  # [C, V] @ [V, m K] -> [C, m K]
                    seen = seen.unflatten(-1, (slots, -1))
                    weight = old_weight[:, n, :, :slots]
                    dread[:, n] = (weight[..., None, :] @ seen)[..., 0, :]
                    by_slot = (seen @ read[:, n, :, :, None])[..., 0]
                    dold_weight[:, n, :, :slots] = by_slot
                    add_outer(dstate, weight, read[:, n], do[:, n])
                    if boundaries is not None:
                        boundaries.at_read(n, by_slot, read[:, n], do[:, n])
        dslot_weight = torch.zeros_like(slot_weight)
        dslot_weight.scatter_add_(-1, layout.tables.inner, dinner_weight)
        dslot_weight.scatter_add_(-1, layout.tables.old, dold_weight.view(layout.tables.old.shape))
        shape = within.shape[:3]
        return (
            dwithin,
            dread.unflatten(0, shape[:2]),
            dwrite.unflatten(0, shape[:2]),
            dcarry.unflatten(0, shape[:2]),
            dv.unflatten(0, shape[:2]),
            dslot_weight,
            dstate.unflatten(0, shape[:2]),
            None if boundaries is None else boundaries.total(layout.documents),
            None,
        )
