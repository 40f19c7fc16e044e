"""The whole model: embedding, blocks, norm, head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dla_train.models.block import Block
from dla_train.models.cache import AttentionCache, LinearCache, ModelCache
from dla_train.models.config import ModelConfig
from dla_train.models.context import Context, InContext, share_windows
from dla_train.models.documents import Documents
from dla_train.models.head import Head
from dla_train.models.loss import IGNORED
from dla_train.models.mixer_config import AttentionConfig
from dla_train.models.norm import RMSNorm
from dla_train.models.parameter_groups import parameter_groups
from dla_train.models.recomputation import run_again_in_backward


class LanguageModel(InContext):
    """A causal language model: blocks with one kind of mixer, or with two, on a residual stream.

    A new model holds no usable weights: its parameters are NaN until `initialize(model, seed=...)` or `load_state_dict`
    fills them, so that a forgotten call shows at once. It can be made on the meta device.

    Args:
        config: shapes, mixer and memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_every: int | None = None
        self.recompute_selectively = False
        self.embedding = nn.Embedding(config.vocab_size, config.hidden)
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in config.mixers)
        self.norm = RMSNorm(config.hidden, eps=config.norm_eps)
        self.head = Head(config.vocab_size, config.hidden)
        if config.tie_embeddings:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(torch.nan)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """`torch.compile` every block, in place; parameter names stay. One compilation serves all blocks of a mixer.

        `dla_kernels.compiled_graphs` describes what is left out of the graphs.

        Args:
            backend: of `torch.compile`.
        """
        for block in self.blocks:
            block.compile(backend=backend)

    def recompute_blocks(self, every: int = 1, *, selective: bool = False) -> None:
        """Keep only the input of every `every`-th block for the backward, which computes the block again.

        This trades time for memory: with `every` 1, a step takes one more forward and holds the activations of about
        one block instead of all. Results are the same to the last bit if the operations are deterministic.

        Args:
            every: 1 for all blocks, 2 for every second one, and so on.
            selective: keep also the results of products with weights, of attention and of the kernels' op, which take
                nearly all the time of a block. Not for compiled blocks, whose products cannot be seen: they would all
                be computed again.
        Raises:
            ValueError: `every` is below 1.
        """
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        self.recompute_every = every
        self.recompute_selectively = selective

    def share_windows(self, context: Context) -> None:
        """Compute only a slice of each window from now on, together with the other ranks of `context`.

        All of them are called alike, with the same whole windows, and return what concerns their slice, which is
        `context.slice_of` of the whole. `dla_train.models.context.ALONE` undoes this.

        Args:
            context: the ranks; their number divides that of the tokens of a row, and they can share the heads of every
                mixer (`dla_train.distributed.possible`).
        """
        share_windows(self, context)

    def _check(self, cache: ModelCache) -> None:
        wanted = [AttentionCache if isinstance(mixer, AttentionConfig) else LinearCache for mixer in self.config.mixers]
        given = [type(layer) for layer in cache.layers]
        if given != wanted:
            shown = [", ".join(sorted({kind.__name__ for kind in kinds})) for kinds in (given, wanted)]
            order = " in another order" if len(given) == len(wanted) and shown[0] == shown[1] else ""
            raise ValueError(
                f"the cache is that of another model: it has {len(given)} layers of {shown[0]}, and "
                f"this model {len(wanted)} of {shown[1]}{order}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        """Keeps tied weights one parameter even if `fn` gives each module a new one, as in `to_empty`."""
        super()._apply(fn, recurse)
        if self.config.tie_embeddings:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)
        return self

    def _is_recomputed(self, index: int) -> bool:
        return self.recompute_every is not None and index % self.recompute_every == 0 and torch.is_grad_enabled()

    def forward(
        self,
        tokens: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        cache: ModelCache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, ModelCache | None]:
        """Logits of the next token after every token.

        Args:
            tokens: `[B, T]` int64.
            cu_seqlens: `[N + 1]`, starts of packed documents (B is 1): nothing crosses from one into another.
            cache: the past that `tokens` goes on from. return_cache: whether to return the past for the next call.
        Returns:
            logits `[B, T, vocab]` (of a slice, if windows are shared), and the new cache or None.
        Raises:
            ValueError: shapes that do not fit, or documents together with a cache, or a cache with shared windows.
        """
        x, cache = self.hidden_states(tokens, cu_seqlens=cu_seqlens, cache=cache, return_cache=return_cache)
        return self.head(x), cache

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        cache: ModelCache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, ModelCache | None]:
        """What `forward` computes before the head: `[B, T, hidden]`, normalized, and the new cache or None."""
        batch, time = _check_tokens(tokens)
        if cu_seqlens is not None and (cache is not None or return_cache):
            raise ValueError(
                "cu_seqlens was given together with a cache; packed documents have no common past: "
                "pass them without a cache, or one document to a row"
            )
        if cache is not None and cache.batch != batch:
            raise ValueError(
                f"tokens has {batch} rows and the cache {cache.batch} sequences; they must be equal in number"
            )
        if cache is not None:
            self._check(cache)
        if self.context.size > 1 and (cache is not None or return_cache):
            raise ValueError(
                f"a cache was given or asked for, but {self.context.size} ranks share the windows of this model, and "
                "none has seen a whole one; call share_windows(ALONE) first"
            )
        documents = None if cu_seqlens is None else Documents.of(cu_seqlens, batch, time)

        x = self.embedding(self.context.slice_of(tokens))
        layers = []
        for index, block in enumerate(self.blocks):
            past = None if cache is None else cache.layers[index]
            if self._is_recomputed(index) and past is None and not return_cache:
                x, layer = run_again_in_backward(block, x, selective=self.recompute_selectively, documents=documents)
            else:
                x, layer = block(x, documents=documents, cache=past, return_cache=return_cache)
            layers.append(layer)
        x = self.norm(x)
        if not return_cache:
            return x, None
        seen = 0 if cache is None else cache.tokens
        return x, ModelCache(layers=tuple(layers), tokens=seen + time)

    def loss(self, tokens: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None, *, z_loss: float = 0.0) -> Tensor:
        """Mean negative log-likelihood in nats; the logits of all tokens never exist at the same time.

        Args:
            tokens: `[B, T]` int64. targets: `[B, T]` int64, the token after each; -100 does not count.
            cu_seqlens: as in `forward`.
            z_loss: weight of a penalty that enters the gradient but not the result, see `linear_cross_entropy`.
        Returns:
            a scalar, float32 or wider. If windows are shared, the mean over the ranks is the loss.
        """
        hidden, _ = self.hidden_states(tokens, cu_seqlens=cu_seqlens)
        if self.context.size == 1:
            return self.head(hidden, targets, z_loss=z_loss)
        own = self.context.slice_of(targets)
        count = (own != IGNORED).sum()
        # The mean over no target would not be a number, nor would zero times it. So one is taken, and not counted.
        one_at_least = own.flatten().index_fill(0, own.new_zeros(1), 0).view_as(own)
        mean = self.head(hidden, torch.where(count > 0, own, one_at_least), z_loss=z_loss)
        return mean * (count * self.context.size) / (targets != IGNORED).sum()

    @torch.no_grad()
    def token_losses(self, tokens: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """The loss of every target, `[B, T]` in nats, without gradient; 0 where it is -100. Arguments as `loss`."""
        hidden, _ = self.hidden_states(tokens, cu_seqlens=cu_seqlens)
        return self.head(hidden, self.context.slice_of(targets), per_token=True)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimizer, with and without weight decay: see `dla_train.models.parameter_groups`."""
        return parameter_groups(self, weight_decay)


def _check_tokens(tokens: Tensor) -> tuple[int, int]:
    if tokens.ndim != 2 or tokens.shape[1] < 1 or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)} and type {tokens.dtype}; it must be [B, T] of int64 or "
            "int32 with T >= 1"
        )
    return tokens.shape[0], tokens.shape[1]
