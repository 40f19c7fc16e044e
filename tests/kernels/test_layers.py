"""What layers compute around the op, in torch, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from dla_kernels import (
    add_skip,
    gated_rms_norm,
    l2_normalize,
    rms_norm,
    scale_heads,
    shifted_softplus,
    short_convolution,
    swiglu,
)

X, WEIGHT = torch.zeros(1, 6, 8), torch.zeros(8, 4)


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_convolution_is_conv1d_then_silu():
    x, weight, bias = drawn(2, 9, 5), drawn(5, 4), drawn(5)
    expected = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=5).mT)
    torch.testing.assert_close(short_convolution(x, weight, bias, activation="silu"), expected)
    pieces = [
        short_convolution(x[:, t:], weight, bias, activation="silu", history=x[:, t - 3 : t])[:, :1]
        for t in range(3, 9)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), expected[:, 3:])


@pytest.mark.parametrize("groups", [1, 2])
def test_gated_norm_in_both_orders(groups):
    x, gate, weight = drawn(3, 5, 8), drawn(3, 5, 8) + 1, drawn(8)

    def norm(u):
        parts = u.unflatten(-1, (groups, -1))
        return weight * (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2)

    first = gated_rms_norm(x, gate, weight, 1e-5, gate_first=True, groups=groups)
    torch.testing.assert_close(first, norm(x * F.silu(gate)))
    last = gated_rms_norm(x, gate, weight, 1e-5, gate_first=False, groups=groups)
    torch.testing.assert_close(last, norm(x) * F.silu(gate))


def test_l2_norm():
    x = drawn(3, 5, 8)
    x[0, 0] = 0
    torch.testing.assert_close(l2_normalize(x), F.normalize(x, dim=-1), rtol=1e-6, atol=0)
    assert not l2_normalize(x)[0, 0].any()


def test_rms_norm():
    x, weight = drawn(3, 5, 8), drawn(8)
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)
    x, weight = x.bfloat16(), weight.bfloat16()
    assert rms_norm(x, weight, 1e-5).dtype == torch.bfloat16
    exact = rms_norm(x.double(), weight.double(), 1e-5)
    for dtype in (torch.float32, torch.float16):
        found = rms_norm(x, weight, 1e-5, dtype=dtype)
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps * 4, atol=0)


def test_swiglu():
    x = drawn(3, 10)
    torch.testing.assert_close(swiglu(x), F.silu(x[:, :5]) * x[:, 5:])


def test_shifted_softplus():
    x = drawn(3, 10)
    torch.testing.assert_close(shifted_softplus(x, 0.5), F.softplus(x + 0.5))
    assert shifted_softplus(x.bfloat16(), 0.5).dtype == torch.float32


def test_scaled_heads():
    x, y, scale, weight = drawn(2, 5, 3, 4), drawn(2, 5, 3, 4) + 1, drawn(2, 5, 3), drawn(3)
    torch.testing.assert_close(scale_heads(x, scale), torch.einsum("bthv,bth->bthv", x, scale))
    torch.testing.assert_close(add_skip(y, x, weight), y + torch.einsum("bthv,h->bthv", x, weight))


def test_factors_in_float32_round_once():
    """A factor of 16 bits would round the product twice."""
    x, y, scale, weight = (
        drawn(2, 5, 3, 4).bfloat16(),
        drawn(2, 5, 3, 4).bfloat16(),
        drawn(2, 5, 3).float(),
        drawn(3).float(),
    )
    assert torch.equal(scale_heads(x, scale), (x.double() * scale[..., None]).bfloat16())
    assert torch.equal(add_skip(y, x, weight), (y.double() + x.double() * weight[:, None]).bfloat16())


def test_autocast_does_not_reach_in():
    x, gate, weight = drawn(1, 5, 8).float(), drawn(1, 5, 8).float() + 1, drawn(8).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = gated_rms_norm(x, gate, weight, 1e-5, gate_first=True), short_convolution(x, drawn(8, 4).float())
    assert torch.equal(found[0], gated_rms_norm(x, gate, weight, 1e-5, gate_first=True))
    assert torch.equal(found[1], short_convolution(x, drawn(8, 4).float()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: short_convolution(X[0], WEIGHT), r"x has shape \(6, 8\) .* it must be \[B, T, C\]"),
        (lambda: short_convolution(X, WEIGHT.T), r"weight has shape \(4, 8\); it must be \[8, W\]"),
        (lambda: short_convolution(X, WEIGHT, X[0, 0, :4]), r"bias has shape \(4,\); it must be \(8,\)"),
        (lambda: short_convolution(X, WEIGHT, positions=torch.arange(5)), r"positions has shape \(5,\); it must be"),
        (lambda: short_convolution(X, WEIGHT, positions=X[0, :, 0]), "positions has type torch.float32"),
        (lambda: short_convolution(X, WEIGHT, history=X), r"history has shape \(1, 6, 8\); it must be \(1, 3, 8\)"),
        (lambda: short_convolution(X, WEIGHT, activation="gelu"), "activation is 'gelu'; it must be 'silu' or None"),
        (
            lambda: short_convolution(X, WEIGHT, positions=torch.arange(6), history=X[:, :3]),
            "positions and history were both given",
        ),
        (lambda: short_convolution(X, WEIGHT, backend="reference"), "backend is 'reference'; it must be auto, torch"),
        (lambda: short_convolution(X, WEIGHT, backend="triton"), "but x is on cpu; it needs a GPU"),
        (lambda: short_convolution(X, WEIGHT.to("meta")), "weight is on meta and x on cpu"),
        (lambda: gated_rms_norm(X, X[:, 1:], X[0, 0], 1e-5, gate_first=True), r"gate has shape \(1, 5, 8\)"),
        (lambda: gated_rms_norm(X, X, X[0], 1e-5, gate_first=True), r"weight has shape \(6, 8\); it must be"),
        (lambda: gated_rms_norm(X, X, X[0, 0], 1e-5, gate_first=True, groups=3), "groups is 3; it must divide .* 8"),
        (lambda: gated_rms_norm(X.long(), X, X[0, 0], 1e-5, gate_first=True), "x has .* it must be floating point"),
        (lambda: shifted_softplus(X.long(), 0.5), "x has type torch.int64; it must be floating point"),
        (lambda: scale_heads(X, X), r"scale has shape \(1, 6, 8\) .* \(1, 6\), as x is \(1, 6, 8\)"),
        (lambda: scale_heads(X.long(), X[..., 0]), "x has .* it must be floating point"),
        (lambda: scale_heads(X, X[..., 0].to("meta")), "scale is on meta and x on cpu"),
        (lambda: add_skip(X, X, X[0, 0]), r"weight has shape \(8,\) .* \(6,\), as x is"),
        (lambda: add_skip(X[:, 1:], X, X[0, :, 0]), r"y has shape \(1, 5, 8\) .* \(1, 6, 8\) and torch.float32"),
        (lambda: add_skip(X.half(), X, X[0, :, 0]), "y has .* type torch.float16 .* it must be as x is"),
        (lambda: rms_norm(X.long(), X[0, 0], 1e-5), "x has .* it must be floating point"),
        (lambda: rms_norm(X, X[0], 1e-5), r"weight has shape \(6, 8\); it must be the last size of x, \(8,\)"),
        (lambda: rms_norm(X, X[0, 0].to("meta"), 1e-5), "weight is on meta and x on cpu"),
        (lambda: rms_norm(X, X[0, 0], 1e-5, dtype=torch.int8), "dtype is torch.int8; it must be float64, float32"),
        (lambda: swiglu(X[..., :7]), r"x has shape \(1, 6, 7\) .* its last size even"),
    ],
)  # fmt: skip
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_too_wide_for_the_kernel_are_refused_by_name(monkeypatch):
    monkeypatch.setattr("dla_kernels.arguments._interpreting", lambda: True)
    x = torch.zeros(1, 1, 5000)
    with pytest.raises(ValueError, match="rows have 5000 channels; it takes up to 4096"):
        gated_rms_norm(x, x, x[0, 0], 1e-5, gate_first=True, backend="triton")
    with pytest.raises(ValueError, match="rows have 5000 channels; it takes up to 4096"):
        rms_norm(x, x[0, 0], 1e-5, backend="triton")
