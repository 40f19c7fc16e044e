"""RMSNorm, plain and gated. The two backbones gate in opposite order; both are kept as published.

Everything is computed in float32 or wider, and only the result is rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dla_kernels import gated_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """`y = weight * x / sqrt(mean(x^2) + eps)` over the last dimension.

    Args:
        width: size of the last dimension.
        eps: added to the mean square.
    Attributes:
        kernel: None, or a function that computes the norm instead of ours: `kernel(x, weight, eps)`, in the type of x.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.kernel: Callable[[Tensor, Tensor, float], Tensor] | None = None

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`[..., width]` -> the same shape, in type `dtype` (that of `x` if None)."""
        if self.kernel is not None:
            return self.kernel(x, self.weight, self.eps).to(dtype or x.dtype)
        # A compiler fuses a norm in torch with the sum in front of it, which it cannot do with a kernel.
        backend = "torch" if torch.compiler.is_compiling() else "auto"
        return rms_norm(x, self.weight, self.eps, dtype=dtype, backend=backend)


class GatedRMSNormMamba2(nn.Module):
    """Mamba-2: gate, then normalize each group. `RMSNorm(x * silu(gate))`.

    Args:
        width: size of the last dimension. groups: the mean square is taken over `width / groups` channels.
        eps: added to the mean square.
    """

    def __init__(self, width: int, *, groups: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """`[..., width]` twice -> `[..., width]` in the type of `x`."""
        return gated_rms_norm(x, gate, self.weight, self.eps, gate_first=True, groups=self.groups)


class GatedRMSNormDeltaNet(nn.Module):
    """Gated DeltaNet: normalize each head, then gate. `RMSNorm(x) * silu(gate)`.

    Args:
        width: size of the last dimension, a head's value width; all heads share the weight.
        eps: added to the mean square.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """`[..., width]` twice -> `[..., width]` in the type of `x`."""
        return gated_rms_norm(x, gate, self.weight, self.eps, gate_first=False)
