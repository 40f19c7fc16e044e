"""The gradient with respect to a plan's gates: what one more shift of all older tokens would change.

    dgate_s = sum over t >= s > j of y[t, j],   y[t, j] = (L[t, min(age + 1, M - 1)] - L[t, age]) Mx[t, j] (do_t . v_j)

Since the pairs with `t >= s > j` are those with `t >= s` without those with `j >= s`, it is the sum of (row sum -
column sum) of y from s to the end of the document. Row sums come from products the backward forms anyway; column sums
need a second adjoint of the states, with `L[age + 1] - L[age]` in place of `L`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.reader.ages import AgeTables
from dla_kernels.reader.moves import Moves
from dla_kernels.reader.slot_products import add_outer, by_row
from dla_kernels.reader.transitions import ChunkDocuments


class BoundaryGradient:
    """Collects row and column sums of y while a backward pass goes through the chunks in reverse.

    Args:
        slot_weight: L, `[B, H, N, C, M]`.
        products: `Mx[t, j] (do_t . v_j)` inside the chunks, `[B, H, N, C, C]`.
        dstate: the adjoint of the states; only its shape `[R, M, K, V]` is used.
    """

    def __init__(self, slot_weight: Tensor, products: Tensor, dstate: Tensor, tables: AgeTables) -> None:
        oldest = slot_weight.shape[-1] - 1

        def change(age: Tensor) -> Tensor:
            """`L[age + 1] - L[age]`."""
            return slot_weight.gather(-1, (age + 1).clamp_(max=oldest)) - slot_weight.gather(-1, age)

        inside = products * change(tables.inner)
        self._shape = inside.shape[:-1]
        self._change = by_row(change(tables.old))  # [R, N, C, M]
        self._rows, self._columns = by_row(inside.sum(-1)), by_row(inside.sum(-2))  # [R, N, C]
        self._adjoint = torch.zeros_like(dstate)

    def through_move(self, moves: Moves, n: int) -> None:
        """Steps back over the move after chunk n: adds the column sums of its tokens, then moves the adjoint back."""
        self._columns[:, n] += moves.columns(self._adjoint, n)
        self._adjoint = moves.backward_states(self._adjoint, n)

    def at_read(self, n: int, dweight: Tensor, read: Tensor, do: Tensor) -> None:
        """Steps back over chunk n's read of m slots: dweight `[R, C, m]`, read `[R, C, K]`, do `[R, C, V]`."""
        change = self._change[:, n, :, : dweight.shape[-1]]
        self._rows[:, n] += (dweight * change).sum(-1)
        add_outer(self._adjoint, change, read, do)

    def total(self, documents: ChunkDocuments | None) -> Tensor:
        """dgate `[B, H, N, C]`."""
        return _sums_to_end((self._rows - self._columns).view(self._shape), documents)


def _sums_to_end(x: Tensor, documents: ChunkDocuments | None) -> Tensor:
    """Sums of `x` `[B, H, N, C]` from each token to the end of its document."""
    flat = x.flatten(2)
    sums = flat.flip(-1).cumsum(-1).flip(-1)
    if documents is not None:
        after = torch.cat((sums[..., 1:], torch.zeros_like(sums[..., :1])), -1)
        sums = sums - after[..., documents.last.flatten()]
    return sums.view_as(x)
