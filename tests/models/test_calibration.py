"""Calibrated thresholds give the boundary rate that was asked for, layer by layer, on one rank or several."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dla_kernels import segment
from dla_train.models import DynamicMemory
from dla_train.models.calibration import calibrate_thresholds, threshold_at
from dla_train.models.memory import Dynamic


def rates(model: Any, tokens: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
    """`[layers, H]`, the share of tokens that open a slot."""
    found = []
    memories = [module for module in model.modules() if isinstance(module, Dynamic)]
    hooks = [
        m.register_forward_hook(lambda _m, _i, plan: found.append(plan.boundary.double().mean((0, 1))))
        for m in memories
    ]
    with torch.no_grad():
        model(tokens, cu_seqlens=cu_seqlens)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_head_of_every_layer_comes_to_the_rate(make_model: Any, tokens: Any, kind: str, rate: float) -> None:
    model, x = make_model(kind, DynamicMemory(capacity=4, threshold=0.6)), tokens(8, 100)
    before = rates(model, x)
    calibrate_thresholds(model, x, rate)
    after = rates(model, x)
    assert (before - rate).abs().max() > 0.2, "nothing to do"
    # One more boundary moves those after it, so the rate is a staircase with uneven steps, not a line.
    assert (after - rate).abs().max() < 0.04, after
    thresholds = torch.stack([m.threshold for m in model.modules() if isinstance(m, Dynamic)])
    assert len(thresholds.unique()) == thresholds.numel(), "one for each head"
    assert not model.blocks[0].mixer.memory._forward_pre_hooks


def test_documents_begin_anew(make_model: Any, tokens: Any) -> None:
    model, x = make_model("mamba2", DynamicMemory(capacity=4)), tokens(1, 400)
    cu_seqlens = torch.tensor([0, 3, 90, 250, 400])
    calibrate_thresholds(model, x, 0.3, cu_seqlens=cu_seqlens)
    assert (rates(model, x, cu_seqlens) - 0.3).abs().max() < 0.04


def test_a_model_of_16_bit_weights_comes_to_the_rate_too(make_model: Any, tokens: Any) -> None:
    """Scores lie closer together than bfloat16 numbers between 1 and 2, which are 1/128 apart."""
    model, x = make_model("gated_deltanet", DynamicMemory(capacity=4, threshold=0.6)), tokens(8, 100)
    model.float().to(torch.bfloat16)
    calibrate_thresholds(model, x, 0.2)
    assert model.blocks[0].mixer.memory.threshold.dtype == torch.float32
    assert (rates(model, x) - 0.2).abs().max() < 0.04
    moved = model.to("meta").to_empty(device="cpu")
    assert moved.blocks[0].mixer.memory.threshold.dtype == torch.float32


def test_a_learned_threshold_is_set_too(make_model: Any, tokens: Any) -> None:
    model, x = make_model("mamba2", DynamicMemory(capacity=4, learn_threshold=True)), tokens(4, 100)
    calibrate_thresholds(model, x, 0.2)
    assert isinstance(model.blocks[1].mixer.memory.threshold, torch.nn.Parameter)
    assert (rates(model, x) - 0.2).abs().max() < 0.05


def test_ranks_with_tokens_of_their_own_agree_and_meet_the_rate_together() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(4, 200, 1, 8, generator=generator), torch.randn(4, 200, 2, 8, generator=generator)
    whole = threshold_at(0.2, k, v, 4)
    totals: list[torch.Tensor] = []

    def first_pass(count: torch.Tensor) -> torch.Tensor:
        """What the other rank would add, from the whole of the tokens less this rank's."""
        other = segment(k[2:], v[2:], capacity=4, threshold=asked[-1], gate="hard") if count.ndim else None
        totals.append(count)
        return count + (400 if other is None else other.boundary.sum((0, 1), dtype=torch.float64))

    asked: list[torch.Tensor] = []
    from dla_train.models import calibration

    original = calibration.segment

    def spy(k: torch.Tensor, v: torch.Tensor, *, threshold: torch.Tensor, **rest: Any) -> Any:
        asked.append(threshold)
        return original(k, v, threshold=threshold, **rest)

    calibration.segment = spy  # type: ignore[assignment]
    try:
        shared = threshold_at(0.2, k[:2], v[:2], 4, add_up=first_pass)
    finally:
        calibration.segment = original  # type: ignore[assignment]
    assert len(totals) == 1 + calibration.HALVINGS
    torch.testing.assert_close(shared, whole, rtol=0, atol=0)


def test_a_rate_below_that_of_documents_ends_at_the_top() -> None:
    k, v = torch.randn(1, 20, 1, 4), torch.randn(1, 20, 2, 4)
    found = threshold_at(0.1, k, v, 4, torch.arange(0, 21, 2))
    assert (found > 1.99).all()


@pytest.mark.parametrize("rate", [0, 1, -0.1, "often", True])
def test_a_rate_that_cannot_be_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"calibrate_rate is .* must lie between 0 and 1"):
        DynamicMemory(calibrate_rate=rate)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="calibrate_steps is 0"):
        DynamicMemory(calibrate_rate=0.1, calibrate_steps=0)
