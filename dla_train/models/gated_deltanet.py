"""The Gated DeltaNet mixer (arXiv 2412.06464), with any memory in place of its one state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla_kernels import l2_normalize
from dla_kernels.layers.precision import at_least_float32
from dla_train.models.aligned_linear import AlignedLinear
from dla_train.models.cache import LinearCache
from dla_train.models.context import Heads, InContext
from dla_train.models.convolution import ShortConvolution
from dla_train.models.documents import Documents
from dla_train.models.memory import make_memory
from dla_train.models.mixer_config import GatedDeltaNetConfig
from dla_train.models.norm import GatedRMSNormDeltaNet


class GatedDeltaNet(InContext):
    """Linear attention that overwrites what its key already holds, with a scalar decay per head and token.

        q, k, v = silu(conv(proj(x)));    q, k L2-normalized;    beta = sigmoid(b(x))
        S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    g = -exp(A_log) softplus(a(x) + dt_bias)
        out_proj(RMSNorm(S_t^T q_t / sqrt(K)) * silu(gate(x)))

    All projections of the input are one matrix; its rows are q, k, v, gate, b, a, each head after head. The three
    convolutions are one, too. With `memory: single` this is Gated DeltaNet as published.

    Args:
        config: shapes and memory. hidden: width of the residual stream. norm_eps: epsilon of the gated norm.
    """

    def __init__(self, config: GatedDeltaNetConfig, *, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = config.heads
        keys, values = Heads(config.heads, config.key_dim), Heads(config.heads, config.value_dim)
        self.values = values.channels
        self.convolved = (keys, keys, values)
        self.channels = sum(run.channels for run in self.convolved)
        self.in_proj = AlignedLinear(hidden, self.channels + self.values + 2 * config.heads)
        self.conv = ShortConvolution(self.convolved, config.conv_width, bias=False, activation="silu")
        self.A_log = nn.Parameter(torch.empty(config.heads))
        self.dt_bias = nn.Parameter(torch.empty(config.heads))
        self.memory = make_memory(config.memory, hidden=hidden, heads=config.heads)
        self.norm = GatedRMSNormDeltaNet(config.value_dim, eps=norm_eps)
        self.out_proj = nn.Linear(self.values, hidden, bias=False)

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
        qkv, gate, ba = self.in_proj(x).split((self.channels, self.values, 2 * self.heads), -1)
        qkv, ba = self.context.to_heads((qkv, self.convolved), (ba, (Heads(self.heads, 1),) * 2))
        b, a = ba.chunk(2, -1)  # [B, T, H]; where ranks share windows, H counts this rank's heads
        qkv, history = self.conv(
            qkv, documents=documents, history=None if cache is None else cache.conv, return_history=return_cache
        )
        q, k, v = self.context.split_heads(qkv, self.convolved)
        q, k = l2_normalize(q), l2_normalize(k)  # [B, T, H, K]; v [B, T, H, V]

        beta = at_least_float32(b).sigmoid()
        rate, bias = self.context.own(self.A_log), self.context.own(self.dt_bias)
        log_decay = -at_least_float32(rate).exp() * F.softplus(at_least_float32(a) + bias)

        cu_seqlens = None if documents is None else documents.cu_seqlens
        slots = None if cache is None else cache.slots
        o, slots = self.memory.read(
            x,
            q,
            k,
            v,
            log_decay=log_decay,
            beta=beta,
            cu_seqlens=cu_seqlens,
            cache=slots,
            return_cache=return_cache,
        )
        o = self.context.to_tokens(o.to(v.dtype), self.heads)
        y = self.norm(o, self.context.apart(gate).unflatten(-1, (self.heads, -1)))
        y = self.out_proj(y.flatten(-2))
        if slots is None or history is None:
            return y, None
        return y, LinearCache(conv=history, slots=slots)
