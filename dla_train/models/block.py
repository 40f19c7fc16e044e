"""One layer of a model: mix tokens, then channels."""

from __future__ import annotations

from torch import Tensor, nn

from dla_train.models.attention import Attention
from dla_train.models.cache import MixerCache
from dla_train.models.config import ModelConfig
from dla_train.models.documents import Documents
from dla_train.models.gated_deltanet import GatedDeltaNet
from dla_train.models.mamba2 import Mamba2
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig
from dla_train.models.mlp import SwiGLU
from dla_train.models.norm import RMSNorm
from dla_train.models.product_type import product_type


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))` if the model has MLPs.

    Args:
        config: the whole model's configuration. mixer: that of this block.
    """

    def __init__(self, config: ModelConfig, mixer: MixerConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden, eps=config.norm_eps)
        self.mixer = make_mixer(mixer, hidden=config.hidden, norm_eps=config.norm_eps)
        self.mlp: SwiGLU | None = None
        if config.mlp_hidden:
            self.mlp_norm = RMSNorm(config.hidden, eps=config.norm_eps)
            self.mlp = SwiGLU(config.hidden, config.mlp_hidden)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Documents | None = None,
        cache: MixerCache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, MixerCache | None]:
        """`[B, T, hidden]` -> the same shape, and the mixer's new cache or None. Arguments as in the mixers."""
        # Rounded in the norm, once: under autocast, each product that reads it would make, and keep, a copy of its own.
        normed = self.mixer_norm(x, product_type(x))
        mixed, cache = self.mixer(normed, documents=documents, cache=cache, return_cache=return_cache)
        x = x + mixed
        if self.mlp is not None:
            x = x + self.mlp(self.mlp_norm(x, product_type(x)))
        return x, cache


def make_mixer(config: MixerConfig, *, hidden: int, norm_eps: float) -> Mamba2 | GatedDeltaNet | Attention:
    """The token mixer that `config` describes, for a residual stream of width `hidden`."""
    match config:
        case Mamba2Config():
            return Mamba2(config, hidden=hidden, norm_eps=norm_eps)
        case GatedDeltaNetConfig():
            return GatedDeltaNet(config, hidden=hidden, norm_eps=norm_eps)
        case AttentionConfig():
            return Attention(config, hidden=hidden)
