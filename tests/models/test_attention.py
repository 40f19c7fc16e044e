"""Softmax attention and its rotary positions."""

from __future__ import annotations

import math
from typing import cast

import torch

from dla_train.models import AttentionConfig
from dla_train.models.attention import Attention
from dla_train.models.rope import rotate


def test_rotary_products_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 16, dtype=torch.float64)
    products = {}
    for first, second in ((0, 0), (7, 7), (12, 5), (1007, 1000), (5, 12)):
        turned_q = rotate(q, torch.tensor([first]), base=1e4)
        turned_k = rotate(k, torch.tensor([second]), base=1e4)
        products[first, second] = float((turned_q * turned_k).sum())
    assert math.isclose(products[0, 0], float((q * k).sum()), rel_tol=1e-12)
    assert math.isclose(products[7, 7], products[0, 0], rel_tol=1e-12)
    assert math.isclose(products[12, 5], products[1007, 1000], rel_tol=1e-9)
    assert not math.isclose(products[12, 5], products[5, 12], rel_tol=1e-3)


def test_rotary_positions_turn_pairs_and_keep_lengths() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    y = rotate(x, torch.arange(5), base=1e4)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    first = x[0, 3, 0] * math.cos(3) - x[0, 3, 4] * math.sin(3)
    torch.testing.assert_close(y[0, 3, 0], first)


def test_attention_against_its_definition() -> None:
    torch.manual_seed(0)
    heads, hidden, time = 2, 8, 9
    mixer = cast(Attention, Attention(AttentionConfig(heads=heads, rope_base=1e4), hidden=hidden).double())
    x = torch.randn(1, time, hidden, dtype=torch.float64)
    q, k, v = (y.view(time, heads, 4).transpose(0, 1) for y in mixer.qkv_proj(x)[0].chunk(3, -1))
    q, k = (rotate(y, torch.arange(time), base=1e4) for y in (q, k))
    o = torch.zeros(heads, time, 4, dtype=torch.float64)
    for t in range(time):
        weights = torch.softmax(torch.einsum("hd,hsd->hs", q[:, t], k[:, : t + 1]) / 2, -1)
        o[:, t] = torch.einsum("hs,hsd->hd", weights, v[:, : t + 1])
    torch.testing.assert_close(mixer(x)[0][0], mixer.out_proj(o.transpose(0, 1).flatten(1)))
