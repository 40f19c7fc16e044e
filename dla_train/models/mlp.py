"""The channel mixer."""

from __future__ import annotations

from torch import Tensor, nn

from dla_kernels import swiglu


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, without biases. Gate and up are the two halves of one matrix.

    Args:
        hidden: width of the residual stream. width: width between the matrices.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` -> the same shape."""
        return self.down_proj(swiglu(self.gate_up_proj(x)))
