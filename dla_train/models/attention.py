"""Causal softmax attention: the baseline whose memory grows with every token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from dla_train.models.cache import AttentionCache
from dla_train.models.documents import Documents
from dla_train.models.mixer_config import AttentionConfig
from dla_train.models.rope import rotate


class Attention(nn.Module):
    """Multi-head attention with rotary positions, through torch's scaled dot-product attention.

    Args:
        config: heads and frequencies. hidden: width of the residual stream.
    """

    def __init__(self, config: AttentionConfig, *, hidden: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.rope_base = config.rope_base
        self.qkv_proj = nn.Linear(hidden, 3 * hidden, bias=False)
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
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
        if documents is None:
            seen = 0 if cache is None else cache.k.shape[2]
            positions = torch.arange(seen, seen + x.shape[1], device=x.device)
        else:
            positions = documents.positions
        q = rotate(q, positions, base=self.rope_base)
        k = rotate(k, positions, base=self.rope_base)
        if cache is not None:
            k = torch.cat((cache.k.to(k.dtype), k), 2)
            v = torch.cat((cache.v.to(v.dtype), v), 2)
        o = _attend(q, k, v) if documents is None else _attend_each(q, k, v, documents)
        y = self.out_proj(o.transpose(1, 2).flatten(-2))
        # Not a view, which would keep the whole tensor of q, k and v alive.
        return y, AttentionCache(k=k, v=v.contiguous()) if return_cache else None


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last `Tq` of `Tk` positions: q `[B, H, Tq, D]`, k and v `[B, H, Tk, D]` -> as q."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if queries == 1:
        return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(queries, keys))


def _attend_each(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Attention inside each document, in a loop: a mask would take T x T memory."""
    parts = (x.split(documents.lengths, 2) for x in (q, k, v))
    return torch.cat([_attend(*document) for document in zip(*parts, strict=True)], 2)
