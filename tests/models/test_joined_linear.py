"""Longer rows, as on a GPU, change no result and no gradient."""

from __future__ import annotations

import pytest
import torch

from dla_train.models import joined_linear
from dla_train.models.joined_linear import JoinedLinear, missing_columns
from dla_train.models.slot_weight import SlotWeight


@pytest.fixture(params=[False, True], ids=["float32", "autocast"])
def autocast(request):
    return torch.autocast("cpu", torch.bfloat16, enabled=request.param)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    def on_or_off(on):
        monkeypatch.setattr(joined_linear, "missing_columns", lambda width, x: -width % 16 if on else 0)

    return on_or_off


def made(module, x, autocast):
    """Results and gradients, each result weighted otherwise."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with autocast:
        results = module(x)
    results = results if isinstance(results, tuple) else (results,)
    torch.stack([((number + 1) * y.double().square()).sum() for number, y in enumerate(results)]).sum().backward()
    return [*results, x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("kind", ["joined", "slot weights"])
def test_longer_rows_give_the_same(as_on_a_gpu, autocast, kind):
    generator = torch.Generator().manual_seed(0)
    module = JoinedLinear(24, (16, 40, 3)) if kind == "joined" else SlotWeight(24, heads=3, capacity=5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn(2, 7, 24, generator=generator)
    found = []
    for on in (False, True):
        as_on_a_gpu(on)
        found.append(made(module, x, autocast))
    assert len(found[0]) == (5 if kind == "joined" else 4)
    for plain, longer in zip(*found, strict=True):
        torch.testing.assert_close(longer, plain, rtol=0, atol=0)


def test_rows_are_a_multiple_of_16_numbers(as_on_a_gpu):
    as_on_a_gpu(True)
    results = JoinedLinear(8, (16, 32, 12))(torch.zeros(1, 5, 8))
    assert [y.shape[-1] for y in results] == [16, 32, 12]
    assert {y.stride(1) for y in results} == {64}


def test_nothing_is_added_on_the_cpu_or_in_float32():
    x = torch.zeros(1, 2, 8)
    assert missing_columns(60, x) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert missing_columns(60, x) == 0
