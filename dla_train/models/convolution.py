"""The short causal convolution in front of linear attention: each channel looks at its own last few tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dla_kernels import short_convolution
from dla_kernels.layers.convolution import Activation
from dla_train.models.context import Heads, InContext
from dla_train.models.documents import Documents


class ShortConvolution(InContext):
    """Depthwise causal convolution over time and its activation, as in `dla_kernels.short_convolution`.

    The layout of `weight` `[channels, width]` is that of `torch.nn.Conv1d`: the last tap meets the newest token.

    Args:
        heads: the channels. width: number of taps. bias: whether there is a bias.
        activation: what is applied to the sums.
    """

    def __init__(self, heads: Sequence[Heads], width: int, *, bias: bool, activation: Activation | None = None) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.width = width
        channels = sum(run.channels for run in self.heads)
        self.activation: Activation | None = activation
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(
        self,
        x: Tensor,
        *,
        documents: Documents | None = None,
        history: Tensor | None = None,
        return_history: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolves a piece of a sequence.

        Args:
            x: `[B, T, channels]`; where ranks share windows, those of this rank's heads.
            documents: packed documents in `x`; each sees zeros before its first token.
            history: `[B, width - 1, channels]`, the inputs just before `x`, from an earlier call; zeros if None.
            return_history: whether to return the history for the next call.
        Returns:
            y `[B, T, channels]` in the type of `x`, and the new history or None.
        """
        y = short_convolution(
            x,
            self.context.own(self.weight, self.heads),
            None if self.bias is None else self.context.own(self.bias, self.heads),
            activation=self.activation,
            history=history,
            positions=None if documents is None or history is not None else documents.positions,
        )
        return y, self._next_history(x, history) if return_history else None

    def _next_history(self, x: Tensor, history: Tensor | None) -> Tensor:
        """The last `width - 1` inputs, in memory of their own: a view would keep all of `x` alive."""
        past = self.width - 1
        if x.shape[1] < past:
            before = x.new_zeros(x.shape[0], past, x.shape[2]) if history is None else history.to(x.dtype)
            x = torch.cat((before, x), 1)
        return x[:, x.shape[1] - past :].clone()
