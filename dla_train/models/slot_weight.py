"""How much each slot is read: lambda of eq. 18, one weight per token, head and slot age."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dla_kernels import shifted_softplus
from dla_train.models.aligned_linear import aligned_linear
from dla_train.models.context import Heads, InContext

UNIT_OFFSET = math.log(math.e - 1)
"""`softplus(UNIT_OFFSET) = 1`: with a projection of zero the model is exactly its single-state backbone."""


class SlotWeight(InContext):
    """`lambda = softplus(L * proj(x) + log(e - 1))`.

    `proj` (`weight`) has no bias, and `L` (`scale`) starts at one and is kept out of weight decay, as in Log-Linear
    attention; the offset is ours and makes the weights start near one.

    Args:
        hidden: width of the layer's input. heads: H. capacity: M.
    """

    def __init__(self, hidden: int, heads: int, capacity: int) -> None:
        super().__init__()
        self.heads = heads
        self.capacity = capacity
        self.weight = nn.Parameter(torch.empty(heads * capacity, hidden))
        self.scale = nn.Parameter(torch.empty(heads, capacity))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input `[B, T, hidden]` -> `[B, T, H, M]` by slot age, float32 or wider.

        Of its slice of windows that ranks share, a rank gets the weights of its own heads for the whole windows. They
        have an exchange of their own. In that of the mixer's channels they would lie in one tensor with them, which the
        convolution keeps for its backward; here they are let go of once the softplus has read them.
        """
        # L is multiplied into the matrix, which has far fewer entries than the projected tokens.
        projected = aligned_linear(x, self.weight * self.scale.view(-1, 1))
        (projected,) = self.context.to_heads((projected, (Heads(self.heads, self.capacity),)))
        return shifted_softplus(projected, UNIT_OFFSET).unflatten(-1, (-1, self.capacity))


class UnitSlotWeight(InContext):
    """Weight one for the only slot of the single-state backbone; no parameters.

    Args:
        heads: H.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input `[B, T, hidden]` -> ones `[B, T, H, 1]`, without memory of their own. See `SlotWeight`."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        batch, time = x.shape[0], x.shape[1] * self.context.size
        return torch.ones((), dtype=dtype, device=x.device).expand(
            batch, time, self.context.share(Heads(self.heads, 1)), 1
        )
