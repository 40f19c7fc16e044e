"""The order of the stages, forward and backward, for both update rules; TRITON.md has the picture.

A rule is given by four things: queries `Qe = scale exp(G) q`, writes `U = exp(G_end - G) u`, how a chunk's tokens read
each other (`within`), and how states are carried over a chunk (`removal`, or a factor). Nothing is kept from the
forward: the backward recomputes the tables and states, which costs little compared with reading them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.carry import carry_adjoint
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.gates import columns_of_states, crossing, gate_gradient
from dla_kernels.reader.fused.keys import keys_backward
from dla_kernels.reader.fused.pair_gradients import add_key_pairs, add_query_pairs
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.products_backward import products_backward
from dla_kernels.reader.fused.queries import queries_backward
from dla_kernels.reader.fused.read import read
from dla_kernels.reader.fused.slots_adjoint import slots_adjoint
from dla_kernels.reader.fused.states import advance_states
from dla_kernels.reader.fused.states_delta import advance_states_delta, carry_adjoint_delta, carry_gradient
from dla_kernels.reader.fused.sums import group_sums
from dla_kernels.reader.fused.values import values_backward
from dla_kernels.reader.fused.weights import Weights, weights_of
from dla_kernels.reader.fused.weights_backward import weights_backward
from dla_kernels.reader.fused.within import Within


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The inputs of a read, in the terms of a rule; contiguous, with the tokens of the batch flattened.

    Attributes:
        q, k, u: `[tokens, G, K]` (plain decay: u is k) or `[tokens, H, K]` (delta rule: Qe, U, U).
        v: `[tokens, H, V]`. slot_weight: `[tokens, H, M]`.
        total: G `[H, tokens]` float32, zeros for the delta rule. until: the decay from a token to the end of its tile,
            likewise; not used for the delta rule. scale: of the queries, one for the delta rule.
        within: the part of Mx that is computed beforehand.
        carry, removal: for the delta rule a chunk turns S into `carry S - removal S`, `[chunks, H]` float32 and
            `[chunks, H, K, K]`; None for plain decay, whose carry is `exp(G_end)`.
        state: `[N, H, M, K, V]` float32 by age, or None.
    """

    q: Tensor
    k: Tensor
    u: Tensor
    v: Tensor
    slot_weight: Tensor
    total: Tensor
    until: Tensor
    scale: float
    within: Within
    carry: Tensor | None
    removal: Tensor | None
    state: Tensor | None
    tables: AgeTables
    pieces: Pieces
    tiles: Tiles

    def states(self, *, return_state: bool) -> tuple[Tensor, Tensor | None]:
        """The states at the starts of chunks and, if asked, at the sequences' ends."""
        slots = self.slot_weight.shape[-1]
        if self.removal is None:
            return advance_states(
                self.u, self.v, self.total, self.state, self.tables, self.pieces, self.tiles,
                slots=slots, return_state=return_state,
            )  # fmt: skip
        assert self.carry is not None
        return advance_states_delta(
            self.u, self.v, self.carry, self.removal, self.state, self.tables, self.pieces, self.tiles,
            slots=slots, return_state=return_state,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradients of `Problem`'s parts. dq, dk `[tokens, G, K]` (delta rule: of Qe and U).

    qdq, kdk `[H, tokens]`, ends `[tiles, H]`, dcarry `[chunks, H]`: what decay_backward needs (plain decay; the first
    three are empty otherwise, or zeros).
    dwithin, dremoval: for the delta rule, else None. dgate `[tokens, H]` float32: for a gate, else None.
    """

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dslot_weight: Tensor
    dstate: Tensor | None
    qdq: Tensor
    kdk: Tensor
    ends: Tensor
    dcarry: Tensor
    dwithin: Tensor | None
    dremoval: Tensor | None
    dgate: Tensor | None


def forward(problem: Problem, *, return_state: bool) -> tuple[Tensor, Tensor | None]:
    """o `[tokens, H, V]` and the states at the sequences' ends or None."""
    p = problem
    kept, final = p.states(return_state=return_state)
    weights = weights_of(p.slot_weight, p.total, p.v.dtype, p.tables, p.pieces)
    o = read(
        p.q, p.k, p.v, p.within, weights, p.total, p.until, kept, p.scale, p.tables, p.pieces, p.tiles,
        has_state=p.state is not None,
    )  # fmt: skip
    return o, final


def backward(problem: Problem, do: Tensor, dfinal: Tensor | None, *, gate: bool) -> Gradients:
    """The gradients for do `[tokens, H, V]` and dfinal `[N, H, M, K, V]` float32 or None."""
    p = problem
    has_state = p.state is not None
    groups = p.q.shape[1]
    where = p.tables, p.pieces, p.tiles
    kept, _ = p.states(return_state=False)

    # of the read, at each token
    weights = weights_of(p.slot_weight, p.total, p.v.dtype, p.tables, p.pieces)
    dq, dweight = queries_backward(p.q, do, weights, kept, p.scale, *where, has_state=has_state)
    # summed at once, because 16-bit gradients per head are as large as the states of a few chunks
    dq = group_sums(dq, groups, None if p.within.decayed else torch.float32)
    changes = weights_of(p.slot_weight, p.total, p.v.dtype, p.tables, p.pieces, changes=True) if gate else None
    dslot_weight, dwithin, qdq, sums = weights_backward(
        p.q, p.k, p.v, do, p.within, weights, p.total, p.until, dweight, changes, p.slot_weight, p.scale, *where
    )
    del dweight
    dproducts = None
    if not p.within.decayed:
        dproducts = products_backward(p.v, do, weights, p.total, p.until, p.scale, *where, groups=groups)
        dq = add_query_pairs(dq, dproducts, p.k, p.pieces, p.tiles)

    # of the boundaries: sums over pairs, and the same adjoint for the changes of weights by one more shift
    dgate = None
    if changes is not None and sums is not None:
        rows, columns, squares = sums
        adjoint, (dstate, _) = _adjoint(p, do, changes, None, None, has_state=has_state)
        of_states = columns_of_states(p.u, p.v, p.total, adjoint, *where)
        crosses = crossing(kept, adjoint, p.state, dstate, p.tables, p.pieces)
        dgate = gate_gradient(rows - columns - of_states, squares + of_states.square(), crosses, p.pieces)
        del adjoint, dstate, changes

    # of the writes and the carry, from the states at each chunk's end
    adjoint, (dstate, dcarry) = _adjoint(p, do, weights, kept, dfinal, has_state=has_state)
    dremoval = None
    has_dfinal = dfinal is not None
    if p.removal is not None:
        dremoval = carry_gradient(
            kept, adjoint, p.tables, p.pieces, p.tiles, has_state=has_state, has_dfinal=has_dfinal
        )
        dcarry = dremoval.diagonal(dim1=-2, dim2=-1).sum(-1)
        dremoval = -dremoval
    assert dcarry is not None
    del kept  # memory
    dk = keys_backward(p.v, p.total, adjoint, *where, slots=weights.slots, key_dim=p.u.shape[2], has_dfinal=has_dfinal)
    if dproducts is not None:
        dk = add_key_pairs(group_sums(dk, groups, torch.float32), dproducts, p.q, p.pieces, p.tiles)
        del dproducts
    dv, kdk, ends = values_backward(
        p.q, p.k, p.u, p.v, do, p.within, weights, p.total, adjoint, p.scale, *where, has_dfinal=has_dfinal
    )
    return Gradients(
        dq=dq, dk=dk, dv=dv, dslot_weight=dslot_weight, dstate=dstate, qdq=qdq, kdk=kdk.sum(0), ends=ends.sum(0),
        dcarry=dcarry, dwithin=dwithin, dremoval=dremoval, dgate=dgate,
    )  # fmt: skip


def _adjoint(
    p: Problem, do: Tensor, weights: Weights, kept: Tensor | None, dfinal: Tensor | None, *, has_state: bool,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:  # fmt: skip
    """The adjoint of the states at chunk ends `[rows, H, M, K, V]`, that of the states before, and, for plain decay,
    `exp(G_end) d exp(G_end)` from the states `kept` at chunk starts."""
    adjoint, dstate = slots_adjoint(
        p.q, do, weights.at_chunk, p.scale, p.tables, p.pieces, p.tiles,
        has_state=has_state, has_dfinal=dfinal is not None,
    )  # fmt: skip
    dcarry = None
    if p.removal is None:
        dcarry = carry_adjoint(adjoint, dfinal, dstate, kept, p.total, p.tables, p.pieces)
    else:
        assert p.carry is not None
        carry_adjoint_delta(p.carry, p.removal, adjoint, dfinal, dstate, p.tables, p.pieces, p.tiles)
    return adjoint.high, (dstate, dcarry)
