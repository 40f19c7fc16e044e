"""Longer rows, as on a GPU, change no result and no gradient."""

from __future__ import annotations

import pytest
import torch

from dla_train.models import aligned_linear
from dla_train.models.aligned_linear import AlignedLinear, missing_columns
from dla_train.models.slot_weight import SlotWeight


@pytest.fixture(params=[False, True], ids=["float32", "autocast"])
def autocast(request):
    return torch.autocast("cpu", torch.bfloat16, enabled=request.param)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    def on_or_off(on):
        monkeypatch.setattr(aligned_linear, "missing_columns", lambda width, x: -width % 16 if on else 0)

    return on_or_off


def made(module, x, autocast):
    """Result and gradients."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with autocast:
        y = module(x)
    y.double().square().sum().backward()
    return [y, x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("kind", ["projection", "slot weights"])
def test_longer_rows_give_the_same(as_on_a_gpu, autocast, kind):
    generator = torch.Generator().manual_seed(0)
    module = AlignedLinear(24, 59) if kind == "projection" else SlotWeight(24, heads=3, capacity=5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn(2, 7, 24, generator=generator)
    found = []
    for on in (False, True):
        as_on_a_gpu(on)
        found.append(made(module, x, autocast))
    assert len(found[0]) == (3 if kind == "projection" else 4)
    for plain, longer in zip(*found, strict=True):
        torch.testing.assert_close(longer, plain, rtol=0, atol=0)


def test_rows_are_a_multiple_of_16_numbers(as_on_a_gpu):
    as_on_a_gpu(True)
    y = AlignedLinear(8, 60)(torch.zeros(1, 5, 8))
    assert y.shape == (1, 5, 60)
    assert y.stride() == (5 * 64, 64, 1)


def test_nothing_is_added_on_the_cpu_or_in_float32():
    x = torch.zeros(1, 2, 8)
    assert missing_columns(60, x) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert missing_columns(60, x) == 0


@pytest.mark.parametrize("mixer", ["mamba2", "gated_deltanet"])
def test_a_projection_can_be_replaced_by_any_linear_layer(make_model, tokens, mixer):
    """As tools that adapt or quantize models do."""
    model, given = make_model(mixer, "dynamic"), tokens(2, 9)
    expected, _ = model(given)
    for block in model.blocks:
        own = block.mixer.in_proj
        plain = torch.nn.Linear(own.in_features, own.out_features, bias=False, dtype=own.weight.dtype)
        plain.load_state_dict(own.state_dict())
        block.mixer.in_proj = plain
    torch.testing.assert_close(model(given)[0], expected, rtol=0, atol=0)
