"""The Mamba-2 mixer (arXiv 2405.21060), with any memory in place of its one state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla_kernels import add_skip, scale_heads
from dla_kernels.layers.precision import at_least_float32
from dla_train.models.aligned_linear import AlignedLinear
from dla_train.models.cache import LinearCache
from dla_train.models.context import Heads, InContext
from dla_train.models.convolution import ShortConvolution
from dla_train.models.documents import Documents
from dla_train.models.memory import make_memory
from dla_train.models.mixer_config import Mamba2Config
from dla_train.models.norm import GatedRMSNormMamba2


class Mamba2(InContext):
    """Linear attention with a scalar decay per head and token.

        z, (x, B, C), dt = in_proj(u);    x, B, C = silu(conv(x, B, C));    dt = softplus(dt + dt_bias)
        S_t = exp(-exp(A_log) dt_t) S_{t-1} + B_t (dt_t x_t)^T;    y_t = S_t^T C_t + D x_t
        out_proj(RMSNorm(y * silu(z)))

    In the op's letters: k = B, q = C, v = dt x, scale 1. With `memory: single` this is Mamba-2 as published, and its
    parameters are those of mamba_ssm in the same order (`in_proj` rows: z, x, B, C, dt).

    Args:
        config: shapes and memory. hidden: width of the residual stream. norm_eps: epsilon of the gated norm.
    """

    def __init__(self, config: Mamba2Config, *, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.inner = config.heads * config.head_dim
        keys = Heads(config.groups, config.state_dim, serve_many=config.groups < config.heads)
        self.convolved = (Heads(config.heads, config.head_dim), keys, keys)
        self.channels = sum(run.channels for run in self.convolved)
        self.in_proj = AlignedLinear(hidden, self.inner + self.channels + config.heads)
        self.conv = ShortConvolution(self.convolved, config.conv_width, bias=True, activation="silu")
        self.A_log = nn.Parameter(torch.empty(config.heads))
        self.dt_bias = nn.Parameter(torch.empty(config.heads))
        self.D = nn.Parameter(torch.empty(config.heads))
        self.memory = make_memory(config.memory, hidden=hidden, heads=config.heads)
        self.norm = GatedRMSNormMamba2(self.inner, groups=config.groups, eps=norm_eps)
        self.out_proj = nn.Linear(self.inner, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Documents | None = None,
        cache: LinearCache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, LinearCache | None]:
        """Mixes tokens.

        Args:
            x: `[B, T, hidden]`, the layer's input.
            documents: packed documents in `x`.
            cache: the past that `x` goes on from. return_cache: whether to return the past for the next call.
        Returns:
            `[B, T, hidden]`, and the new cache or None.
        """
        z, xbc, dt = self.in_proj(x).split((self.inner, self.channels, self.heads), -1)
        xbc, dt = self.context.to_heads((xbc, self.convolved), (dt, (Heads(self.heads, 1),)))
        xbc, history = self.conv(
            xbc, documents=documents, history=None if cache is None else cache.conv, return_history=return_cache
        )
        # [B, T, H, V], [B, T, G, K] twice; where ranks share windows, H and G count this rank's heads
        values, k, q = self.context.split_heads(xbc, self.convolved)

        own = self.context.own
        dt = F.softplus(at_least_float32(dt) + own(self.dt_bias))  # [B, T, H]
        log_decay = -at_least_float32(own(self.A_log)).exp() * dt
        v = scale_heads(values, dt)

        cu_seqlens = None if documents is None else documents.cu_seqlens
        slots = None if cache is None else cache.slots
        o, slots = self.memory.read(
            x,
            q,
            k,
            v,
            log_decay=log_decay,
            scale=1.0,
            cu_seqlens=cu_seqlens,
            cache=slots,
            return_cache=return_cache,
        )
        y = add_skip(o, values, own(self.D))
        y = self.out_proj(self.norm(self.context.to_tokens(y, self.heads).flatten(-2), self.context.apart(z)))
        if slots is None or history is None:
            return y, None
        return y, LinearCache(conv=history, slots=slots)
