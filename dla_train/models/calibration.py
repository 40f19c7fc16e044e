"""Thresholds that give a wanted boundary rate: the calibration of tau (eq. 14).

How often boundaries occur depends entirely on the features. At the paper's tau of 0.6, the nearly orthogonal keys and
values of an untrained model make every token a boundary, and the method degenerates without any sign of it. So tau can
be set, per head, to fit the model's own scores. A token's score depends on the segment that it meets, and therefore on
tau itself: a quantile of the scores under one tau is not the right tau. So the rate is measured, and tau is found by
bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dla_kernels import segment
from dla_train.models.context import ALONE, Context
from dla_train.models.language_model import LanguageModel
from dla_train.models.memory import Dynamic

HALVINGS = 16
"""How often [0, 2] is halved: this gives tau to 3e-5, less than the distance between the scores of a batch."""


@torch.no_grad()
def calibrate_thresholds(
    model: LanguageModel,
    tokens: Tensor,
    rate: float,
    *,
    cu_seqlens: Tensor | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda count: count,
) -> None:
    """Sets the threshold of every head with a dynamic memory so that on `tokens` it opens slots at a given rate.

    This takes one forward pass from the first layer to the last: each layer is calibrated on the outputs of the already
    calibrated layers before it.

    Args:
        model: its thresholds are changed in place, buffers and parameters alike.
        tokens: `[B, T]` int64.
        rate: share of tokens that are to open a slot, in (0, 1).
        cu_seqlens: documents, as in `LanguageModel.forward`.
        add_up: sums a tensor over all ranks, which have different tokens; all ranks then get the same thresholds.
    """
    memories = [module for module in model.modules() if isinstance(module, Dynamic)]
    handles = [memory.register_forward_pre_hook(_calibrating(rate, add_up), with_kwargs=True) for memory in memories]
    try:
        model.hidden_states(tokens, cu_seqlens=cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()


def _calibrating(rate: float, add_up: Callable[[Tensor], Tensor]) -> Any:
    def calibrate(memory: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(memory, Dynamic)
        k, v = inputs
        documents, heads = named.get("cu_seqlens"), memory.slot_weight.heads
        memory.threshold.copy_(threshold_at(rate, k, v, memory.capacity, documents, add_up, memory.context, heads))

    return calibrate


def threshold_at(
    rate: float,
    k: Tensor,
    v: Tensor,
    capacity: int,
    cu_seqlens: Tensor | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda count: count,
    context: Context = ALONE,
    heads: int | None = None,
) -> Tensor:
    """`[H]` float32: the tau at which the share of tokens that open a slot crosses `rate`, accurate to 3e-5.

    k `[B, T, G, K]`, v `[B, T, H, V]`, of this rank's heads if ranks share windows (`context`); `heads`: number of
    all. The first tokens of documents always open one, so a rate below their share ends at tau = 2.
    """
    heads = v.shape[2] if heads is None else heads
    low, high = (torch.full((heads,), bound, dtype=torch.float32, device=v.device) for bound in (0.0, 2.0))
    total = add_up(torch.full((), v.shape[0] * v.shape[1], dtype=torch.float64, device=v.device)) / context.size
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        plan = segment(k, v, capacity=capacity, threshold=context.own(middle), cu_seqlens=cu_seqlens, gate="hard")
        found = add_up(context.placed(plan.boundary.sum((0, 1), dtype=torch.float64), heads)) / total
        is_too_often = found > rate
        low, high = torch.where(is_too_often, middle, low), torch.where(is_too_often, high, middle)
    return high
