# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""`dla::segment` and `dla::straight_through_gate`: the segmentation as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_kernels.operators import operator
from dla_kernels.plan import JOIN, SegmentState
from dla_kernels.reader.fused.configs import Tiles, tiles_by_rule
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.sums import group_sums
from dla_kernels.segmentation.fused.gradient import score_gradients
from dla_kernels.segmentation.fused.merges import merge_slots
from dla_kernels.segmentation.fused.scores import score_tokens


def segment_sequences(
    k: Tensor, v: Tensor, threshold: Tensor, state: SegmentState, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, SegmentState]:
    """shift `[B, T, H]` int32, score and |S|^2 `[B, T, H]` float32, the state at the end; `state` is not changed."""
    shift, score, norm, open_sum, score_sum, count = segment_operator(
        k, v, threshold, state.open_sum, state.score_sum, state.count, cu_seqlens
    )
    return shift, score, norm, SegmentState(open_sum=open_sum, score_sum=score_sum, count=count)


def _pieces(k: Tensor, v: Tensor, slots: int, cu_seqlens: Tensor | None) -> tuple[Pieces, Tiles]:
    """The pieces, with chunks of one tile each, and the tile sizes."""
    tiles = tiles_by_rule(k.shape[3], v.shape[3], slots, torch.promote_types(k.dtype, v.dtype), delta=False)
    pieces = Pieces.of(v.shape[0], v.shape[1], cu_seqlens, tiles.tile, tiles.tile, v.device)
    return pieces, tiles


@operator("dla::segment")
def segment_operator(
    k: Tensor, v: Tensor, threshold: Tensor, open_sum: Tensor, score_sum: Tensor, count: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """shift, score, |S|^2, and the three parts of the state at the end."""
    shape = v.shape[:3]
    pieces, tiles = _pieces(k, v, count.shape[-1], cu_seqlens)
    k, v = (x.flatten(0, 1).contiguous() for x in (k, v))
    open_sum, score_sum, count = (x.clone(memory_format=torch.contiguous_format) for x in (open_sum, score_sum, count))
    score, norm, shift, segments = score_tokens(k, v, threshold.contiguous(), open_sum, count, pieces, tiles)
    merge_slots(segments, shift, score_sum, count, pieces)
    return shift.view(shape), score.view(shape), norm.view(shape), open_sum, score_sum, count


@segment_operator.register_fake
def _(k, v, threshold, open_sum, score_sum, count, cu_seqlens):
    return (
        v.new_empty(v.shape[:3], dtype=torch.int32),
        v.new_empty(v.shape[:3], dtype=torch.float32),
        v.new_empty(v.shape[:3], dtype=torch.float32),
        open_sum.new_empty(open_sum.shape),
        score_sum.new_empty(score_sum.shape),
        count.new_empty(count.shape),
    )


@operator("dla::straight_through_gate")
def straight_through_gate(
    k: Tensor, v: Tensor, threshold: Tensor, shift: Tensor, score: Tensor, norm: Tensor, first: Tensor,
    open_sum: Tensor, cu_seqlens: Tensor | None, width: float,
) -> Tensor:  # fmt: skip
    """Boundaries as float32 whose derivative is that of `sigmoid((I_t - tau) / width)`; see `segment`.

    first `[B, T, H]` bool: tokens without a slot before them. open_sum: at the start of the sequences.
    """
    return ((shift != JOIN) & ~first).float()


@straight_through_gate.register_fake
def _(k, v, threshold, shift, score, norm, first, open_sum, cu_seqlens, width):
    return v.new_empty(shift.shape, dtype=torch.float32)


@operator("dla::score_gradient", is_gradient=True)
def score_gradient(
    k: Tensor, v: Tensor, shift: Tensor, score: Tensor, norm: Tensor, dscore: Tensor, open_sum: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dk and dv of `sum_t dscore_t I_t`, with the open segment taken as constant; all `[B, T, ...]`."""
    pieces, tiles = _pieces(k, v, 1, cu_seqlens)
    flat = [x.flatten(0, 1).contiguous() for x in (k, v, shift, score, norm, dscore)]
    dk, dv = score_gradients(*flat, open_sum.contiguous(), pieces, tiles.block_k, tiles.block_v)
    return group_sums(dk, k.shape[2]).view(k.shape), dv.view(v.shape)


@score_gradient.register_fake
def _(k, v, shift, score, norm, dscore, open_sum, cu_seqlens):
    return k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, width = inputs
    ctx.save_for_backward(*tensors)
    ctx.width = width


def _backward(ctx: Any, dgate: Tensor) -> tuple[Tensor | None, ...]:
    k, v, threshold, shift, score, norm, first, open_sum, cu_seqlens = ctx.saved_tensors
    soft = torch.sigmoid((score - threshold) / ctx.width)
    dscore = torch.where(first, 0.0, dgate * soft * (1.0 - soft) / ctx.width)
    dk = dv = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        dk, dv = score_gradient(k, v, shift, score, norm, dscore, open_sum, cu_seqlens)
    return dk, dv, -dscore.sum((0, 1)), *(None,) * 7


straight_through_gate.register_autograd(_backward, setup_context=_setup)
