"""With one state, the mixers are Mamba-2 and Gated DeltaNet as published: recurrences written from the papers."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dla_kernels import multi_state_attention
from dla_train.models import DynamicMemory, GatedDeltaNetConfig, Mamba2Config, MemoryConfig, SingleMemory
from dla_train.models.gated_deltanet import GatedDeltaNet
from dla_train.models.mamba2 import Mamba2

HIDDEN = 12


def randomized(mixer: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in mixer.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[T, C]` with `weight` `[C, W]`, the last tap on the newest token."""
    width = weight.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    y = torch.stack([(padded[t : t + width].t() * weight).sum(1) for t in range(len(x))])
    return y if bias is None else y + bias


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups: int) -> None:
    heads, width, state = 4, 6, 5
    config = Mamba2Config(heads=heads, head_dim=width, state_dim=state, groups=groups, memory=SingleMemory())
    mixer = cast(Mamba2, randomized(Mamba2(config, hidden=HIDDEN, norm_eps=1e-5)))
    u = torch.randn(20, HIDDEN, dtype=torch.float64)
    inner, keys = heads * width, groups * state

    z, xbc, dt = (u @ mixer.in_proj.weight.t()).split([inner, inner + 2 * keys, heads], 1)
    x, b, c = F.silu(convolve(xbc, mixer.conv.weight, mixer.conv.bias)).split([inner, keys, keys], 1)
    dt = torch.log1p(torch.exp(dt + mixer.dt_bias))
    outputs = []
    h = torch.zeros(heads, width, state, dtype=torch.float64)
    for t in range(len(u)):
        y = torch.zeros(heads, width, dtype=torch.float64)
        for head in range(heads):
            group = head // (heads // groups)
            b_t, c_t = (v[t].view(groups, state)[group] for v in (b, c))
            x_t = x[t].view(heads, width)[head]
            h[head] = torch.exp(-mixer.A_log[head].exp() * dt[t, head]) * h[head] + dt[t, head] * torch.outer(x_t, b_t)
            y[head] = h[head] @ c_t + mixer.D[head] * x_t
        outputs.append(y.flatten())
    y = torch.stack(outputs) * F.silu(z)  # gate before norm
    y = y.view(-1, groups, inner // groups)
    y = (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1) * mixer.norm.weight
    torch.testing.assert_close(mixer(u[None])[0][0], y @ mixer.out_proj.weight.t())


def test_gated_deltanet() -> None:
    heads, key, value = 3, 5, 7
    config = GatedDeltaNetConfig(heads=heads, key_dim=key, value_dim=value, memory=SingleMemory())
    mixer = cast(GatedDeltaNet, randomized(GatedDeltaNet(config, hidden=HIDDEN, norm_eps=1e-5)))
    x = torch.randn(20, HIDDEN, dtype=torch.float64)

    sizes = [heads * key, heads * key, heads * value, heads * value, heads, heads]
    q_proj, k_proj, v_proj, gate_proj, b_proj, a_proj = mixer.in_proj.weight.split(sizes)
    conv = mixer.conv.weight.split(sizes[:3])
    q, k, v = (
        F.silu(convolve(x @ proj.t(), taps, None)).view(len(x), heads, -1)
        for proj, taps in zip((q_proj, k_proj, v_proj), conv, strict=True)
    )
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    beta = torch.sigmoid(x @ b_proj.t())
    alpha = torch.exp(-mixer.A_log.exp() * F.softplus(x @ a_proj.t() + mixer.dt_bias))
    outputs = []
    s = torch.zeros(heads, value, key, dtype=torch.float64)
    identity = torch.eye(key, dtype=torch.float64)
    for t in range(len(x)):
        for head in range(heads):
            forget = identity - beta[t, head] * torch.outer(k[t, head], k[t, head])
            s[head] = alpha[t, head] * s[head] @ forget + beta[t, head] * torch.outer(v[t, head], k[t, head])
        outputs.append(torch.einsum("hvk,hk->hv", s, q[t] * key**-0.5))
    o = torch.stack(outputs)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight  # norm before gate
    o = o * F.silu(x @ gate_proj.t()).view(len(x), heads, value)
    torch.testing.assert_close(mixer(x[None])[0][0], o.flatten(1) @ mixer.out_proj.weight.t())


@pytest.mark.parametrize("memory", [SingleMemory(), DynamicMemory(capacity=3)])
def test_decays_and_weights_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch, memory: MemoryConfig) -> None:
    seen = {}

    def call(q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: object, **options: object) -> object:
        seen.update(q=q, k=k, v=v, slot_weight=slot_weight)
        seen.update({name: x for name, x in options.items() if name in ("log_decay", "beta") and x is not None})
        return multi_state_attention(q, k, v, slot_weight, plan, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("dla_train.models.memory.multi_state_attention", call)
    for module, mixer in (
        ("mamba2", Mamba2(Mamba2Config(heads=2, memory=memory), hidden=HIDDEN, norm_eps=1e-5)),
        (
            "gated_deltanet",
            GatedDeltaNet(
                GatedDeltaNetConfig(heads=2, key_dim=8, value_dim=8, memory=memory), hidden=HIDDEN, norm_eps=1e-5
            ),
        ),
    ):
        seen.clear()
        randomized(mixer).float()
        with torch.autocast("cpu", torch.bfloat16):
            y = mixer(torch.randn(1, 9, HIDDEN))[0]
        assert y.isfinite().all()
        assert {name: x.dtype for name, x in seen.items() if name in "qkv"} == dict.fromkeys("qkv", torch.bfloat16)
        exact = {name: x.dtype for name, x in seen.items() if name not in "qkv"}
        assert set(exact) == {"slot_weight", "log_decay"} | ({"beta"} if module == "gated_deltanet" else set())
        assert set(exact.values()) == {torch.float32}
