"""Causal softmax attention: the baseline whose memory grows with every token, and the other half of hybrid models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dla_train.models.cache import AttentionCache
from dla_train.models.context import Heads, InContext
from dla_train.models.document_attention import attend_to_documents
from dla_train.models.documents import Documents
from dla_train.models.mixer_config import AttentionConfig
from dla_train.models.rope import rotate
from dla_train.models.sliding_window import attend


class Attention(InContext):
    """Multi-head attention through torch's scaled dot-product attention; with grouped queries, rotary positions and a
    sliding window where the configuration has them.

    Args:
        config: heads, window and frequencies. hidden: width of the residual stream.
    """

    def __init__(self, config: AttentionConfig, *, hidden: int) -> None:
        super().__init__()
        width = hidden // config.heads
        self.heads = config.heads
        keys = Heads(config.key_heads, width, serve_many=config.key_heads < config.heads)
        self.joint = (Heads(config.heads, width), keys, keys)
        self.window, self.rope_base = config.window, config.rope_base
        self.qkv_proj = nn.Linear(hidden, hidden + config.keys_and_values(hidden), bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Documents | None = None,
        cache: AttentionCache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, AttentionCache | None]:
        """Mixes tokens.

        Args:
            x: `[B, T, hidden]`, the layer's input.
            documents: packed documents in `x`; each is attended to by itself.
            cache: keys and values that `x` goes on from. return_cache: whether to return those for the next call.
        Returns:
            `[B, T, hidden]`, and the new cache or None.
        """
        (joint,) = self.context.to_heads((self.qkv_proj(x), self.joint))
        time = joint.shape[1]  # more than in `x` where ranks share windows
        counts = [self.context.share(run) for run in self.joint]
        # All heads are as wide, so they are split as heads: in the backward their gradients are copied only once.
        parts = joint.unflatten(-1, (-1, self.joint[0].width)).split(counts, 2)
        q, k, v = (part.transpose(1, 2) for part in parts)  # [B, heads, T, D]
        seen = 0 if cache is None else cache.tokens
        if self.rope_base is not None:
            if documents is None:
                positions = torch.arange(seen, seen + time, device=x.device)
            else:
                positions = documents.positions
            q = rotate(q, positions, base=self.rope_base)
            k = rotate(k, positions, base=self.rope_base)
        if cache is not None:
            k = torch.cat((cache.k.to(k.dtype), k), 2)
            v = torch.cat((cache.v.to(v.dtype), v), 2)
        if documents is None:
            o = attend(q, k, v, self.window)
        else:
            o = attend_to_documents(q, k, v, documents, self.window)
        y = self.out_proj(self.context.to_tokens(o.transpose(1, 2), self.heads).flatten(-2))
        if not return_cache:
            return y, None
        return y, AttentionCache(k=self._kept(k), v=self._kept(v), tokens=seen + time)

    def _kept(self, x: Tensor) -> Tensor:
        """What of keys or values the next token may read; not a view, which would keep a larger tensor alive."""
        time = x.shape[2]
        if self.window is None or time < self.window:
            return x.contiguous()
        return x[:, :, time - self.window + 1 :].clone(memory_format=torch.contiguous_format)
