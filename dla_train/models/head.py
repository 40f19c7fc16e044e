"""From the residual stream to the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla_train.models.loss import linear_cross_entropy, token_losses


class Head(nn.Module):
    """A matrix without bias. It computes losses, too, because sharded parameters exist only while a module is called.

    Args:
        vocab_size: number of token ids. hidden: width of the residual stream.
    Attributes:
        kernel: None, or what computes the mean loss in place of torch: `kernel(x, weight, targets, z_loss)`.
    """

    def __init__(self, vocab_size: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden))
        self.kernel: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None

    def forward(
        self, x: Tensor, targets: Tensor | None = None, *, per_token: bool = False, z_loss: float = 0.0
    ) -> Tensor:
        """Logits, or the loss where targets are given.

        Args:
            x: `[..., hidden]`. targets: `[...]` int64 or None; -100 does not count.
            per_token: return the loss of every target, without gradient, instead of their mean.
            z_loss: affects the gradient of the mean only, see `linear_cross_entropy`.
        Returns:
            logits `[..., vocab]`; with targets the mean loss, a scalar in nats; per token `[...]`.
        """
        if targets is None:
            return F.linear(x, self.weight)
        if per_token:
            return token_losses(x, self.weight, targets)
        if self.kernel is not None:
            return self.kernel(x, self.weight, targets, z_loss)
        return linear_cross_entropy(x, self.weight, targets, z_loss=z_loss)
