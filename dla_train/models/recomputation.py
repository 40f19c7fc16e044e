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
        selective: keep also the results of what takes long, so that only the rest is computed again. That of the
            block's last product is not kept: nothing in the block needs it, so nothing makes it again either.
    """
    context: Callable[[], Any] = noop_context_fn
    if selective:
        policy = functools.partial(_keep_costly, _size_of_last_product(block))
        context = functools.partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=context, **arguments)


def _size_of_last_product(block: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of the block's last linear layer; None if another one has the same."""
    sizes = [(one.in_features, one.out_features) for one in block.modules() if isinstance(one, nn.Linear)]
    return sizes[-1] if sizes and sizes.count(sizes[-1]) == 1 else None


def _keep_costly(
    last: tuple[int, int] | None, context: SelectiveCheckpointContext, op: OpOverload, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    name = op.name().split(".")[0]
    is_last = name == "aten::mm" and tuple(args[1].shape) == last
    return CheckpointPolicy.MUST_SAVE if name in _COSTLY and not is_last else CheckpointPolicy.PREFER_RECOMPUTE
