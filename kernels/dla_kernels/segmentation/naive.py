"""The segmentation as the paper prints it, one token after the other: the definition every other backend is held to.

Letters: N sequences, T time, H heads, K key dim, V value dim, M slots. Everything is float32, whatever the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.plan import JOIN, SegmentState

ORTHOGONAL = 2.0**0.5
"""The score of a token against a state if one of them is zero: it has no direction, so they count as orthogonal."""


def score(token: Tensor, open_sum: Tensor) -> Tensor:
    """Eq. 13, the State Information Score: `||s - S||_F / ||S||_F` after RMSNorm of both, `[..., K, V]` -> `[...]`."""
    token_square = token.square().mean((-2, -1), keepdim=True)
    sum_square = open_sum.square().mean((-2, -1), keepdim=True)
    defined = (token_square > 0) & (sum_square > 0)
    # The root is taken after `where`: its slope at zero is infinite, and infinity times zero would give a NaN gradient.
    token = token / torch.where(defined, token_square, 1.0).sqrt()
    open_sum = open_sum / torch.where(defined, sum_square, 1.0).sqrt()
    distance = torch.linalg.matrix_norm(token - open_sum) / torch.where(
        defined[..., 0, 0], torch.linalg.matrix_norm(open_sum), 1.0
    )
    return torch.where(defined[..., 0, 0], distance, ORTHOGONAL)


def younger_of_sparsest_pair(score_sum: Tensor, count: Tensor) -> Tensor:
    """Eq. 16 with all M slots in use: the age of the younger member of the adjacent pair of lowest density.

    Args:
        score_sum: `[..., M]` float32, Ibar by age. count: `[..., M]`, tokens by age.
    Returns:
        `[...]` int64. Ties go to the oldest pair.
    """
    density = (score_sum[..., :-1] + score_sum[..., 1:]) / (count[..., :-1] + count[..., 1:])
    oldest_first = density.flip(-1)
    return density.shape[-1] - 1 - oldest_first.argmin(-1)


def empty_state(
    sequences: int, heads: int, capacity: int, key_dim: int, value_dim: int, device: torch.device
) -> SegmentState:
    """The state before the first token: no slots."""
    return SegmentState(
        open_sum=torch.zeros(sequences, heads, key_dim, value_dim, dtype=torch.float32, device=device),
        score_sum=torch.zeros(sequences, heads, capacity, dtype=torch.float32, device=device),
        count=torch.zeros(sequences, heads, capacity, dtype=torch.int32, device=device),
    )


def segment_sequences(
    k: Tensor, v: Tensor, threshold: Tensor, state: SegmentState, gate_width: float | None
) -> tuple[Tensor, Tensor, Tensor, SegmentState]:
    """Segments N sequences that continue from `state`.

    Args:
        k, v: `[N, T, H, K]`, `[N, T, H, V]`, keys already expanded to the value heads.
        threshold: `[H]`, tau.
        state: slots of the past; unchanged by the call.
        gate_width: of the straight-through gate, or None for a gate without gradient.
    Returns:
        shift `[N, T, H]` int32, score and gate `[N, T, H]` float32, the state after the last token.

    The gate is 1 where a token is a boundary by its score. Its derivative is that of `sigmoid((I_t - tau) /
    gate_width)`, where `I_t` depends on the new token and the open segment counts as constant.
    """
    open_sum, score_sum, count = state.open_sum, state.score_sum, state.count.long()
    capacity = count.shape[-1]
    age = torch.arange(capacity, device=k.device)
    shifts, scores, gates = [], [], []
    for t in range(k.shape[1]):
        token = k[:, t, :, :, None].float() * v[:, t, :, None, :].float()  # s_t, eq. 13
        used = (count > 0).sum(-1)
        first = used == 0
        information = torch.where(first, 0.0, score(token, open_sum))
        boundary = ~first & (information >= threshold) & (capacity > 1)  # eq. 14
        opens = boundary | (first & (capacity > 1))
        gate = boundary.float()
        if gate_width is not None and capacity > 1:
            soft = torch.sigmoid((information - threshold) / gate_width)
            gate = gate + torch.where(first, 0.0, soft - soft.detach())
        information, token = information.detach(), token.detach()

        # eq. 16: at a boundary with all slots in use, merge the pair (a, a + 1) before the newcomer is inserted
        if capacity > 1:
            younger = younger_of_sparsest_pair(score_sum, count.clamp(min=1))
            shift = torch.where(used == capacity, younger, capacity)
            shift = torch.where(opens, shift, JOIN)
        else:
            shift = torch.full_like(used, JOIN)

        # eq. 17: a slot of age a becomes older or stays; those that meet are added
        aged = torch.clamp(age + (age <= shift[..., None]).long(), max=capacity - 1)
        score_sum = torch.zeros_like(score_sum).scatter_add(-1, aged, score_sum)
        count = torch.zeros_like(count).scatter_add(-1, aged, count)

        # eq. 15: into the new slot, or into the open one; both have age 0 now
        newest = (age == 0).to(score_sum.dtype)
        score_sum = score_sum + newest * information[..., None]
        count = count + newest.long()
        open_sum = torch.where(opens[..., None, None], token, open_sum + token)
        shifts.append(shift)
        scores.append(information)
        gates.append(gate)
    final = SegmentState(open_sum=open_sum, score_sum=score_sum, count=count.int())
    return torch.stack(shifts, 1).int(), torch.stack(scores, 1), torch.stack(gates, 1), final
