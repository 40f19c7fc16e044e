"""Blocks that keep less for the backward, which computes the rest again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

_COSTLY = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "dla::segment",
        "dla::read_plain",
        "dla::read_delta",
    }
)
"""Operators whose results are kept: products with weights, attention, and the op of `dla_kernels`."""


def run_again_in_backward(block: nn.Module, x: Tensor, *, selective: bool, **arguments: Any) -> Any:
    """`block(x, **arguments)`, which keeps `x` for the backward and there runs the block again.

    Args:
        block: a layer without randomness. x: `[B, T, hidden]`, its input. arguments: of the block.
        selective: keep also the results of what takes long, so that only the rest is computed again.
    """
    context: Callable[[], Any] = noop_context_fn
    if selective:
        context = functools.partial(create_selective_checkpoint_contexts, _keep_costly)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=context, **arguments)


def _keep_costly(context: SelectiveCheckpointContext, op: OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name().split(".")[0] in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
