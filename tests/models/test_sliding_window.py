"""Attention in blocks as long as the window, against one mask over all pairs of tokens."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dla_train.models import AttentionConfig
from dla_train.models.attention import Attention
from dla_train.models.cache import AttentionCache
from dla_train.models.sliding_window import attend

W = 4


def by_one_mask(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The definition, in which heads of keys and values are repeated."""
    times, queries, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(times, 1) for x in (k, v))
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    hidden = (distance < 0) | (distance >= (window or keys))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("heads", [2, 1], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("window", [None, 1, W, 100])
@pytest.mark.parametrize("queries", [1, W - 1, W, W + 1, 2 * W, 3 * W + 3])
def test_outputs_and_gradients_are_those_of_one_mask(queries: int, window: int | None, batch: int, heads: int) -> None:
    for past in (0, 1, W - 1, W, 2 * W + 1):
        q = random(batch, 2, queries, 6, seed=0)
        k, v = (random(batch, heads, past + queries, 6, seed=seed) for seed in (1, 2))
        o, expected = attend(q, k, v, window), by_one_mask(q, k, v, window)
        torch.testing.assert_close(o, expected)
        weight = random(batch, 2, queries, 6, seed=3).detach()
        for found, wanted in zip(
            torch.autograd.grad((o * weight).sum(), (q, k, v)),
            torch.autograd.grad((expected * weight).sum(), (q, k, v)),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)


def test_the_work_grows_with_the_window_and_not_with_the_square_of_the_tokens() -> None:
    found = []
    for tokens in (64 * W, 128 * W):
        q, k, v = (random(1, 2, tokens, 6, seed=seed).detach() for seed in range(3))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as work:
            attend(q, k, v, W)
        found.append(work.get_total_flops())
    products, two_windows = 2 * 2 * 2 * 6, 2 * W  # both products, two heads of width 6
    assert found[1] - found[0] == products * 64 * W * two_windows


def mixer_of(**fields: Any) -> Attention:
    torch.manual_seed(0)
    return cast(Attention, Attention(AttentionConfig(heads=4, **fields), hidden=16).double())


@pytest.mark.parametrize(
    "fields", [{}, {"window": 5, "kv_heads": 2}, {"window": 1}, {"rope_base": None, "kv_heads": 1}]
)
@pytest.mark.parametrize("cut", [1, 4, 5, 6, 11])
def test_a_text_in_pieces_is_read_as_in_one(fields: Any, cut: int) -> None:
    mixer, x = mixer_of(**fields), random(2, 23, 16, seed=4).detach()
    whole, _ = mixer(x)
    first, cache = mixer(x[:, :cut], return_cache=True)
    second, cache = mixer(x[:, cut:18], cache=cache, return_cache=True)
    pieces = [first, second]
    for t in range(18, 23):
        one, cache = mixer(x[:, t : t + 1], cache=cache, return_cache=True)
        pieces.append(one)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert cache.tokens == 23


@pytest.mark.parametrize("batch", [1, 2])
def test_the_past_of_a_window_has_a_fixed_size(batch: int) -> None:
    mixer = mixer_of(window=5, kv_heads=1)
    cache: AttentionCache | None = None
    for tokens in (3, 9, 1, 1):
        _, cache = mixer(random(batch, tokens, 16, seed=5).detach(), cache=cache, return_cache=True)
        assert cache is not None
        kept = min(cache.tokens, 4)
        assert cache.k.shape == cache.v.shape == (batch, 1, kept, 4)
        held = sum(x.untyped_storage().nbytes() for x in (cache.k, cache.v))
        assert held == 2 * batch * kept * 4 * 8, "no view that keeps more alive"


def test_without_positions_the_order_of_the_past_does_not_matter() -> None:
    x = random(1, 9, 16, seed=6).detach()
    turned = torch.cat((x[:, :8].flip(1), x[:, 8:]), 1)
    for base, same in ((None, True), (1e4, False)):
        mixer = mixer_of(rope_base=base)
        assert torch.allclose(mixer(x)[0][:, -1], mixer(turned)[0][:, -1]) == same


def test_a_wider_group_of_queries_has_fewer_weights() -> None:
    config = AttentionConfig(heads=4, kv_heads=1)
    assert config.key_heads == 1
    assert Attention(config, hidden=16).qkv_proj.weight.shape == (16 + 2 * 4, 16)
    assert dataclasses.replace(config, kv_heads=None).key_heads == 4
