"""Steered thresholds bring the rate to where it was asked for and keep it there while the features change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dla_kernels import Plan, segment
from dla_train.models import DynamicMemory
from dla_train.models.memory import Dynamic
from dla_train.models.steering import ThresholdSteering, wanted_threshold


def dynamic(model: Any) -> list[Dynamic]:
    return [module for module in model.modules() if isinstance(module, Dynamic)]


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_the_rate_comes_and_stays_while_the_weights_change(make_model: Any, tokens: Any, kind: str) -> None:
    model, x = make_model(kind, DynamicMemory(capacity=4, threshold=0.6)), tokens(8, 100)
    steering = ThresholdSteering(model, 0.2, 0.1)
    steering.is_active = True
    seen: list[torch.Tensor] = []
    for memory in dynamic(model):
        memory.register_forward_hook(lambda _m, _i, plan: seen.append(plan.boundary.double().mean((0, 1))))
    generator = torch.Generator().manual_seed(0)
    rates = []
    with torch.no_grad():
        for _ in range(70):
            seen.clear()
            model(x)
            rates.append(torch.stack(seen))
            steering.move()
            for parameter in model.parameters():
                parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
    assert (rates[0] - 0.2).abs().max() > 0.3, "nothing to do"
    assert (torch.stack(rates[50:]).mean(0) - 0.2).abs().max() < 0.05


def test_what_is_wanted_is_the_quantile_of_the_scores_and_first_tokens_are_above() -> None:
    k, v = torch.randn(2, 100, 1, 8), torch.randn(2, 100, 3, 8)
    plan = segment(k, v, capacity=4, threshold=1.2)
    wanted = wanted_threshold(plan, 0.25)
    above = (plan.score >= wanted).sum((0, 1)) + 2  # the first token of each row
    assert above.tolist() == [50, 50, 50]
    rare = Plan(shift=plan.shift, score=plan.score, capacity=4)
    assert (wanted_threshold(rare, 0.001) == 2).all(), "first tokens alone are more than were asked for"


def test_micro_batches_are_averaged_ranks_too_and_nothing_is_seen_while_it_is_not_active(
    make_model: Any, tokens: Any
) -> None:
    model = make_model("mamba2", DynamicMemory(capacity=4, threshold=0.6))
    steering = ThresholdSteering(model, 0.2, 0.1)
    before = [memory.threshold.clone() for memory in dynamic(model)]
    plans: list[list[Plan]] = [[], []]
    for index, memory in enumerate(dynamic(model)):
        memory.register_forward_hook(lambda _m, _i, plan, index=index: plans[index].append(plan))
    with torch.no_grad():
        model(tokens(2, 50))
        steering.move()
        assert all(torch.equal(memory.threshold, tau) for memory, tau in zip(dynamic(model), before, strict=True))
        steering.is_active = True
        for seen in plans:
            seen.clear()
        model(tokens(2, 50))
        model(tokens(2, 60))
    steering.move(lambda wanted: wanted + 0.5)
    for memory, tau, both in zip(dynamic(model), before, plans, strict=True):
        wanted = 0.5 + (wanted_threshold(both[0], 0.2) + wanted_threshold(both[1], 0.2)) / 2
        torch.testing.assert_close(memory.threshold, tau + 0.1 * (wanted - tau))
    steering.close()
    assert all(len(memory._forward_hooks) == 1 for memory in dynamic(model)), "this test's own"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steer": 0.1}, "steer is 0.1, but calibrate_rate is null"),
        ({"steer": 0.1, "calibrate_rate": 0.1, "learn_threshold": True}, "steer is 0.1 and learn_threshold true"),
        ({"steer": True, "calibrate_rate": 0.1}, "steer is True; it must be above 0 and at most 1"),
        ({"steer": 1.5, "calibrate_rate": 0.1}, "steer is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicMemory(**settings)
