"""FLOPs of reading M states per head and of planning where they begin: the formula for what kernels of our own do.

Letters: H heads, G key groups, K and V widths of keys and values, M slots, C tokens in a chunk. Counted are the matrix
products of the chunked algorithm (`dla_kernels/README.md`), each multiply-add as two FLOPs, per token of one layer;
what is elementwise is not, as in `torch.utils.flop_counter`. C is free: pairs inside chunks cost C, carrying states
through the delta rule 1 / C. The count takes the C that needs least, so that a kernel gains nothing by needless work;
states that it makes again in the backward pass are its own expense, too.
"""

from __future__ import annotations

from dla_train.estimate.work import NONE, Work, product

CHUNKS = (64, 128, 256, 512)
"""What C may be: fewer tokens do not fill the tiles of matrix units."""


def reader_work(
    *, heads: int, groups: int, key_dim: int, value_dim: int, slots: int, delta: bool, gate: bool
) -> dict[str, Work]:
    """The reader's products, per token, by stage, in the chunks that take least.

    Args:
        heads, groups, key_dim, value_dim, slots: H, G, K, V, M. delta: the gated delta rule, else plain decay.
        gate: the boundaries get a straight-through gradient, which is one more pass over slots in the backward.
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
        # dL = Qe . (do S^T) and dQe = L (do S^T), in the backward alone
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
    """The score's products for one token: `k^T S v` and `S += k v^T`; backward: `S v`, `S^T k` and S once more."""
    state = 2 * key_dim * value_dim * heads
    return Work(forward=2 * state, backward=3 * state if gate else 0)
