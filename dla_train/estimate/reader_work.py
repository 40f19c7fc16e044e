"""FLOPs of reading M states per head and of planning where they begin: the formula for our own kernels.

Letters: H heads, G key groups, K and V widths of keys and values, M slots, C tokens in a chunk. Counted are the matrix
products of the chunked algorithm (`dla_kernels/README.md`), per token of one layer, a multiply-add as two FLOPs;
elementwise work is not counted, as in `torch.utils.flop_counter`. C is free: the cost of pairs inside chunks grows with
C, that of carrying states through the delta rule with 1 / C. The count takes the cheapest C, so that needless work does
not raise a kernel's MFU; nor does recomputing states in the backward pass.
"""

from __future__ import annotations

from dla_train.estimate.work import NONE, Work, product

CHUNKS = (64, 128, 256, 512)
"""Values that C may take; fewer tokens do not fill the tiles of matrix units."""


def reader_work(
    *, heads: int, groups: int, key_dim: int, value_dim: int, slots: int, delta: bool, gate: bool
) -> dict[str, Work]:
    """FLOPs of the reader's products per token, by stage, for the chunk length that needs fewest.

    Args:
        heads, groups, key_dim, value_dim, slots: H, G, K, V, M. delta: the gated delta rule, else plain decay.
        gate: whether the boundaries get a straight-through gradient, which takes one more pass over slots in the
            backward.
    """
    choices = [
        reader_work_in_chunks(
            chunk,
            heads=heads,
            groups=groups,
            key_dim=key_dim,
            value_dim=value_dim,
            slots=slots,
            delta=delta,
            gate=gate,
        )
        for chunk in CHUNKS
    ]
    return min(choices, key=lambda stages: sum(stages.values(), NONE).training)


def reader_work_in_chunks(
    chunk: int, *, heads: int, groups: int, key_dim: int, value_dim: int, slots: int, delta: bool, gate: bool
) -> dict[str, Work]:
    """`reader_work` for chunks of C = `chunk` tokens."""
    again = 1 if gate else 0
    state = 2 * key_dim * value_dim * heads  # FLOPs to read, or to write, one state per head
    stages = {
        "pairs": product(2 * chunk * key_dim * groups) + product(2 * chunk * value_dim * heads),
        "slots read": product(slots * state, again=again),
        "slots written": product(state, again=again),
        # dL = Qe . (do S^T) and dQe = L (do S^T), only in the backward
        "slot weights' gradient": Work(forward=0, backward=4 * slots * key_dim * heads),
    }
    if delta:
        # KK^T, W, and in Qe and U; Mx; P (transitions.py)
        per_head = 4 * 2 * chunk * key_dim + 2 * chunk * chunk + 2 * key_dim * key_dim
        # (I + strict_lower(...))^-1 by a triangular solve; its backward is another one and a product
        solve = Work(forward=chunk * chunk * heads, backward=3 * chunk * chunk * heads)
        stages["delta rule in chunks"] = product(per_head * heads) + solve
        stages["delta rule on slots"] = product(slots * key_dim * state / chunk, again=again)
    return stages


def plan_work(*, heads: int, key_dim: int, value_dim: int, gate: bool) -> Work:
    """FLOPs of the score's products for one token: `k^T S v` and `S += k v^T`; in the backward `S v`, `S^T k`, and S
    again."""
    state = 2 * key_dim * value_dim * heads
    return Work(forward=2 * state, backward=3 * state if gate else 0)
