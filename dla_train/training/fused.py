"""Liger's Triton kernels in place of our RMSNorm and of plain torch for the loss: `training.fused: liger`.

https://github.com/linkedin/Liger-Kernel, the extra `fused`. Modules keep their parameters and call the kernels inside
their own `forward`, so sharded weights are there when a kernel reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dla_train.models import LanguageModel
from dla_train.models.loss import IGNORED
from dla_train.models.norm import RMSNorm

if TYPE_CHECKING:
    from dla_train.config.load import LoadedRecipe


def require_liger(loaded: LoadedRecipe) -> None:
    """Refuse a recipe that wants the kernels on a machine that cannot run them; extras.py checks for the package.

    Raises:
        UsageError: it has no GPU.
    """
    training = loaded.recipe.training
    if training.fused != "liger":
        return
    if training.accelerator == "cpu" or not torch.cuda.is_available():
        reason = "training.accelerator is cpu" if training.accelerator == "cpu" else "PyTorch sees no GPU here"
        raise loaded.problem(
            "training.fused", f"it is liger, whose kernels need a CUDA GPU, but {reason}. Set training.fused=none."
        )


def use_liger(model: LanguageModel, *, in_blocks: bool = True) -> None:
    """Makes `model` compute norms and loss with Liger's kernels from now on, in place.

    Args:
        in_blocks: whether to include the norms inside blocks; not for compiled blocks, whose norms the compiler fuses.
    """
    for norm in _norms(model) if in_blocks else [model.norm]:
        norm.kernel = rms_norm
    model.head.kernel = linear_cross_entropy


def use_torch(model: LanguageModel) -> None:
    """Undoes `use_liger`, so that `model` runs on any device again."""
    for norm in _norms(model):
        norm.kernel = None
    model.head.kernel = None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNorm.forward`; all of it in float32, as there ("gemma" is Liger's name for that)."""
    from liger_kernel.ops import LigerRMSNormFunction

    # In-place computation would overwrite the incoming gradient, which the residual stream may still need.
    in_place = False
    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", in_place)  # type: ignore[return-value]


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """`dla_train.models.loss.linear_cross_entropy`: softmax, loss and the sum of the weight's gradient in float32."""
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    class_weight = bias = softcap = None
    smoothing, returns_z_loss = 0.0, True
    flat = targets.flatten()
    with_z_loss, z_part, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden.flatten(0, -2), weight, flat, bias, class_weight, IGNORED, z_loss, smoothing, "mean", softcap,
        returns_z_loss, torch.float32,
    )  # type: ignore[misc]  # fmt: skip
    loss = with_z_loss - z_part.detach()
    return loss.where((flat != IGNORED).any(), torch.nan)


def _norms(model: LanguageModel) -> list[RMSNorm]:
    return [module for module in model.modules() if isinstance(module, RMSNorm)]
