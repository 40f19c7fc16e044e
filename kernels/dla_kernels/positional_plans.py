"""Plans that look at positions only: the baselines of the paper's tables.

A single state, fixed blocks, and the Fenwick levels of Log-Linear attention (arXiv 2506.04761, section 3) are all read
by the same reader as DLA's dynamic plan, so a comparison between them compares the method and nothing else.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from dla_kernels.arguments import check_documents, torch_or_triton
from dla_kernels.documents import positions
from dla_kernels.plan import JOIN, Plan


def single_plan(batch: int, time: int, heads: int, *, device: torch.device | str | None = None) -> Plan:
    """One state for everything (M = 1): the plain backbone. Every token joins.

    Args:
        batch, time, heads: B, T, H.
        device: where the plan's tensors live; torch's default device if None.
    Raises:
        ValueError: a size below 1.
    """
    _check_sizes(batch=batch, time=time, heads=heads)
    shape = (batch, time, heads)
    return Plan(
        shift=torch.full(shape, JOIN, dtype=torch.int32, device=device),
        score=torch.zeros(shape, dtype=torch.float32, device=device),
        capacity=1,
    )


def fixed_plan(
    batch: int,
    time: int,
    heads: int,
    *,
    block: int = 512,
    capacity: int = 32,
    cu_seqlens: Tensor | None = None,
    start: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Plan:
    """A new slot every `block` tokens; when all `capacity` are in use, the two oldest merge.

    Args:
        batch, time, heads: B, T, H.
        block: tokens in a slot.
        capacity: M.
        cu_seqlens: `[N + 1]` document boundaries (then `batch` is 1): blocks begin anew with each document.
        start: tokens that each sequence has consumed before (`cache.tokens`), a number or `[B]` (`[N]` with documents).
        device: where the plan's tensors live; torch's default device if None.
    Raises:
        ValueError: a size below 1, `start` or `cu_seqlens` that do not fit.
    """
    _check_sizes(batch=batch, time=time, heads=heads, block=block, capacity=capacity)
    if isinstance(start, Tensor) and _is_next_token(batch, time, cu_seqlens, start, device):
        return _next_token(start, heads, capacity, block=block)
    position = _absolute_positions(batch, time, cu_seqlens, start, device)
    opened = (position + block - 1) // block
    shift = torch.where(opened < capacity, capacity, capacity - 2)
    shift = torch.where((position % block == 0) & (capacity > 1), shift, JOIN)
    return _plan(shift, heads, capacity, collapse=False)


def fenwick_plan(
    batch: int,
    time: int,
    heads: int,
    *,
    capacity: int = 15,
    cu_seqlens: Tensor | None = None,
    start: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Plan:
    """The levels of Log-Linear attention: at position t, all levels `<= l` collapse into level `l + 1`.

    Here l is the number of zeros at the end of t in binary. Level 0 then holds the token itself, and level l >= 1 the
    block of `2^(l-1)` tokens that the l-th lowest bit of t stands for. Beyond `2^(capacity-1)` tokens the last level
    keeps everything older.

    Args, Raises: as `fixed_plan`, without `block`.
    """
    _check_sizes(batch=batch, time=time, heads=heads, capacity=capacity)
    if isinstance(start, Tensor) and _is_next_token(batch, time, cu_seqlens, start, device):
        return _next_token(start, heads, capacity, block=0)
    position = _absolute_positions(batch, time, cu_seqlens, start, device)
    lowest_bit = position & -position
    trailing_zeros = torch.log2(lowest_bit.clamp(min=1).double()).long()
    shift = torch.clamp(trailing_zeros, max=max(capacity - 2, 0))
    shift = torch.where(position == 0, capacity, shift)
    if capacity == 1:
        shift = torch.full_like(shift, JOIN)
    return _plan(shift, heads, capacity, collapse=True)


def _plan(shift: Tensor, heads: int, capacity: int, *, collapse: bool) -> Plan:
    """The plan with the same `shift` `[B, T]` for every head."""
    shift = shift.to(torch.int32)[:, :, None].expand(-1, -1, heads).contiguous()
    return Plan(
        shift=shift,
        score=torch.zeros(shift.shape, dtype=torch.float32, device=shift.device),
        capacity=capacity,
        collapse=collapse,
    )


def _is_next_token(
    batch: int, time: int, cu_seqlens: Tensor | None, start: Tensor, device: torch.device | str | None
) -> bool:
    """Whether the plan is that of one token of each sequence, as in decoding, and can be made by a kernel."""
    if time != 1 or cu_seqlens is not None or start.shape != (batch,):
        return False
    if start.dtype not in (torch.int32, torch.int64) or (device is not None and torch.device(device) != start.device):
        return False
    return torch_or_triton("auto", "start", start) == "triton"


def _next_token(start: Tensor, heads: int, capacity: int, *, block: int) -> Plan:
    from dla_kernels.decode.positions import plan_token  # imports triton, which only some platforms have

    shift, score = plan_token(start, heads, capacity, block)
    return Plan(shift=shift, score=score, capacity=capacity, collapse=not block)


def _absolute_positions(
    batch: int, time: int, cu_seqlens: Tensor | None, start: int | Tensor, device: torch.device | str | None
) -> Tensor:
    """`[B, T]` int64: the position of each token in its document, counting tokens consumed by earlier calls."""
    check_documents(cu_seqlens, batch, time)
    if isinstance(start, Real) and start < 0:
        raise ValueError(f"start is {start}; it must be at least 0")
    if device is None:
        device = start.device if isinstance(start, Tensor) else torch.get_default_device()
    device = torch.device(device)
    position = positions(cu_seqlens, time, device)[None].expand(batch, -1)
    if isinstance(start, int) and not isinstance(start, bool):  # as a tensor, the host would wait for its copy to a GPU
        return position + start
    offset = torch.as_tensor(start, device=device)
    if offset.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"start has type {offset.dtype}; it must be int32 or int64")
    sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    if offset.ndim > 1 or offset.numel() not in (1, sequences):
        raise ValueError(
            f"start has shape {tuple(offset.shape)}; it must be a number or [{sequences}], one per sequence"
        )
    offset = offset.reshape(-1, 1)
    if cu_seqlens is not None and offset.numel() > 1:
        lengths = cu_seqlens.long().diff().to(device)
        # output_size: else the host would have to wait for the GPU to learn it
        offset = offset[:, 0].repeat_interleave(lengths, output_size=time)[None]
    return position + offset


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
