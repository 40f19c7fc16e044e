"""Torch around the compiled scan: tensors in, a plan's tensors out, and the straight-through gate's gradient."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dla_kernels.documents import ends_of
from dla_kernels.first_derivatives import first_derivative_only
from dla_kernels.host_jobs import array_of, run_jobs
from dla_kernels.plan import JOIN, SegmentState


class _Sequences:
    """Where the N sequences of a `[B, T]` batch lie, as numpy arrays: its rows, or the documents of its only row."""

    def __init__(self, cu_seqlens: Tensor | None, batch: int, time: int) -> None:
        if cu_seqlens is None:
            self.row = np.arange(batch)
            self.begin = np.zeros(batch, np.int64)
            self.end = np.full(batch, time)
        else:
            ends = np.array(ends_of(cu_seqlens), np.int64)
            self.row = np.zeros(len(ends) - 1, np.int64)
            self.begin, self.end = ends[:-1].copy(), ends[1:].copy()


def scan_sequences(
    k: Tensor, v: Tensor, threshold: Tensor, state: SegmentState, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, SegmentState]:
    """Shift `[B, T, H]` int32, score `[B, T, H]` float32 and the final state of the N sequences in k `[B, T, G, K]`, v.

    Tensors on another device are copied to the host and back; a warning says so once, since that is slow.
    """
    scan = _compiled_scan()
    _warn_if_copied(k.device)
    where = _Sequences(cu_seqlens, k.shape[0], k.shape[1])
    shift = np.empty(v.shape[:3], np.int32)
    score = np.empty(v.shape[:3], np.float32)
    open_sum, score_sum, count = (array_of(x).copy() for x in (state.open_sum, state.score_sum, state.count))
    run_jobs(
        scan.segment_scan, len(where.row) * v.shape[2], v.numel() * k.shape[3],
        array_of(k.float()), array_of(v.float()), where.row, where.begin, where.end, array_of(threshold),
        open_sum, score_sum, count, shift, score,
    )  # fmt: skip
    return (
        torch.from_numpy(shift).to(k.device),
        torch.from_numpy(score).to(k.device),
        SegmentState(
            open_sum=torch.from_numpy(open_sum).to(k.device),
            score_sum=torch.from_numpy(score_sum).to(k.device),
            count=torch.from_numpy(count).to(k.device),
        ),
    )


class StraightThroughGate(torch.autograd.Function):
    """Boundary decisions as float32 whose derivative is that of `sigmoid((I_t - tau) / width)`; see `segment`."""

    @staticmethod
    def forward(
        ctx: Any,
        k: Tensor,
        v: Tensor,
        threshold: Tensor,
        shift: Tensor,
        score: Tensor,
        first: Tensor,
        open_sum: Tensor,
        cu_seqlens: Tensor | None,
        width: float,
    ) -> Tensor:
        """`first` `[B, T, H]` bool: tokens that no slot precedes. `open_sum`: of the state before the first token."""
        ctx.save_for_backward(k, v, threshold, shift, score, first, open_sum, cu_seqlens)
        ctx.width = width
        return ((shift != JOIN) & ~first).float()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scan = _compiled_scan()
        k, v, threshold, shift, score, first, open_sum, cu_seqlens = ctx.saved_tensors
        soft = torch.sigmoid((score - threshold) / ctx.width)
        dscore = torch.where(first, 0.0, grads[0] * soft * (1.0 - soft) / ctx.width)
        dthreshold = -dscore.sum((0, 1)) if ctx.needs_input_grad[2] else None
        if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            return None, None, dthreshold, *(None,) * 6
        where = _Sequences(cu_seqlens, k.shape[0], k.shape[1])
        dk = np.empty((*v.shape[:3], k.shape[3]), np.float32)
        dv = np.empty(v.shape, np.float32)
        run_jobs(
            scan.score_gradient, len(where.row) * v.shape[2], v.numel() * k.shape[3],
            array_of(k.float()), array_of(v.float()), where.row, where.begin, where.end, array_of(open_sum).copy(),
            array_of(shift), array_of(score), array_of(dscore), dk, dv,
        )  # fmt: skip
        batch, time, groups, key_dim = k.shape
        dk_groups = torch.from_numpy(dk).view(batch, time, groups, -1, key_dim).sum(3)
        return dk_groups.to(k), torch.from_numpy(dv).to(v), dthreshold, *(None,) * 6


def _compiled_scan() -> ModuleType:
    """The compiled functions, imported when they are first needed."""
    try:
        from dla_kernels.segmentation import scan
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "segment(backend='torch') needs numba, which is not installed: "
            "install it, or use backend='reference', which is slow"
        ) from error
    return scan


_warned = False


def _warn_if_copied(device: torch.device) -> None:
    global _warned
    if device.type != "cpu" and not _warned:
        _warned = True
        warnings.warn(
            f"segment(backend='torch') got tensors on {device}: its scan runs on the host, "
            "and every call copies k and v there",
            stacklevel=4,
        )
