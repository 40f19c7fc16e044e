"""Memories make the plans they are named after, and the small ones of these tests do everything a plan can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dla_kernels import Plan, fenwick_plan, fixed_plan
from dla_train.models import DynamicMemory, LanguageModel
from dla_train.models.memory import Dynamic, Fenwick, Fixed, Memory, Single
from dla_train.models.slot_weight import SlotWeight, UnitSlotWeight


def plans_of(model: LanguageModel, x: torch.Tensor) -> list[Plan]:
    plans: list[Plan] = []

    def keep(_module: object, _args: object, plan: Plan) -> None:
        plans.append(plan)

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, Memory)]
    model(x)
    for hook in hooks:
        hook.remove()
    return plans


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_the_dynamic_test_models_join_open_and_merge(make_model: Any, tokens: Any, kind: str) -> None:
    plans = plans_of(make_model(kind, "dynamic"), tokens(2, 40))
    assert len(plans) == 2
    for plan in plans:
        shift = plan.shift[:, 1:]
        assert (shift == -1).any()
        assert (shift == plan.capacity).any()
        assert ((shift >= 0) & (shift < plan.capacity - 1)).any()


def test_positional_plans(make_model: Any, tokens: Any) -> None:
    x = tokens(2, 40)
    fixed = plans_of(make_model("mamba2", "fixed"), x)[0]
    assert torch.equal(fixed.shift, fixed_plan(2, 40, 4, block=5, capacity=3).shift)
    fenwick = plans_of(make_model("mamba2", "fenwick"), x)[0]
    assert torch.equal(fenwick.shift, fenwick_plan(2, 40, 4, capacity=4).shift)
    assert fenwick.collapse
    single = plans_of(make_model("mamba2", "single"), x)[0]
    assert single.capacity == 1
    assert (single.shift == -1).all()


def test_each_configuration_gives_its_memory(make_model: Any) -> None:
    for name, cls in {"single": Single, "fixed": Fixed, "fenwick": Fenwick, "dynamic": Dynamic}.items():
        assert type(make_model("mamba2", name).blocks[0].mixer.memory) is cls
    assert not list(make_model("mamba2", "single").blocks[0].mixer.memory.parameters())


def test_the_threshold_is_a_buffer_or_a_parameter_and_is_saved(make_model: Any) -> None:
    key = "blocks.0.mixer.memory.threshold"
    fixed = make_model("mamba2", DynamicMemory(threshold=0.7))
    learned = make_model("mamba2", DynamicMemory(threshold=0.7, learn_threshold=True))
    assert key in dict(fixed.named_buffers())
    assert key in dict(learned.named_parameters())
    for model in (fixed, learned):
        torch.testing.assert_close(model.state_dict()[key], torch.full((4,), 0.7, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_a_threshold_per_head_acts_on_its_head_alone(make_model: Any, tokens: Any, kind: str) -> None:
    model = make_model(kind, "dynamic", layers=1)
    x = tokens(2, 40)
    before = plans_of(model, x)[0]
    memory = model.blocks[0].mixer.memory
    memory.threshold[1] = 2.0  # scores reach 2 for opposite states only: next to no boundary
    after = plans_of(model, x)[0]
    others = [head for head in range(before.shift.shape[2]) if head != 1]
    assert torch.equal(after.shift[..., others], before.shift[..., others])
    assert after.boundary[..., 1].sum() < before.boundary[..., 1].sum()


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_the_gate_changes_gradients_and_not_outputs(make_model: Any, tokens: Any, kind: str) -> None:
    x = tokens(2, 40)
    results = []
    for gate in ({"gate": "hard"}, {"gate": "straight_through"}, {"gate": "straight_through", "gate_width": 0.3}):
        model = make_model(kind, DynamicMemory(capacity=4, threshold=1.2, **gate))
        logits = model(x)[0]
        logits.square().mean().backward()
        results.append((logits.detach(), model.blocks[0].mixer.in_proj.weight.grad))
    (hard, hard_gradient), (soft, soft_gradient), (wide, wide_gradient) = results
    torch.testing.assert_close(soft, hard)
    torch.testing.assert_close(wide, hard)
    for one, other in ((soft_gradient, hard_gradient), (wide_gradient, soft_gradient)):
        assert (one - other).abs().max() > 1e-6 * hard_gradient.abs().max()


def test_no_gate_where_no_gradient_can_be_asked_for(make_model: Any, tokens: Any) -> None:
    model = make_model("mamba2", "dynamic")
    assert plans_of(model, tokens(1, 8))[0].gate is not None
    with torch.no_grad():
        assert plans_of(model, tokens(1, 8))[0].gate is None


def test_slot_weights_follow_their_formula() -> None:
    torch.manual_seed(0)
    module = SlotWeight(6, 3, 4).double()
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.scale)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    projected = torch.einsum("btd,hmd->bthm", x, module.weight.view(3, 4, 6))
    expected = torch.log(1 + torch.exp(module.scale * projected) * (torch.e - 1))
    torch.testing.assert_close(module(x), expected)
    torch.nn.init.zeros_(module.weight)
    torch.testing.assert_close(module(x), torch.ones(2, 5, 3, 4, dtype=torch.float64))


def test_the_single_state_weighs_one_without_memory() -> None:
    weights = UnitSlotWeight(3)(torch.randn(2, 5, 6, dtype=torch.bfloat16))
    assert weights.dtype == torch.float32
    assert torch.equal(weights, torch.ones(2, 5, 3, 1))
    assert weights.untyped_storage().nbytes() == 4
