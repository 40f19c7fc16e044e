"""Models compile without a graph break; what the op does inside is its own matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def op_stand_in(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: object, **options: Any
) -> tuple[Tensor, None]:
    """Something cheap that depends on every input."""
    read = (q * k).sum((-2, -1))[..., None, None] + slot_weight.sum(-1, keepdim=True)
    for name in ("log_decay", "beta"):
        if options.get(name) is not None:
            read = read + options[name][..., None]
    return (v * read).to(v.dtype), None


def plan_stand_in(*args: object, **options: object) -> None:
    return None


@pytest.mark.parametrize(
    ("kind", "memory"), [("mamba2", "dynamic"), ("gated_deltanet", "dynamic"), ("attention", "single")]
)
def test_no_graph_break_outside_the_op(
    make_model: Any, tokens: Any, kind: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mamba2", "gated_deltanet"):
        monkeypatch.setattr(f"dla_train.models.{module}.multi_state_attention", op_stand_in)
    for plan in ("segment", "fixed_plan", "fenwick_plan", "single_plan"):
        monkeypatch.setattr(f"dla_train.models.memory.{plan}", plan_stand_in)
    model = make_model(kind, memory, layers=1)
    x, targets = tokens(2, 9), tokens(2, 9, seed=1)
    torch.compiler.reset()
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    loss = compiled(x, targets)
    torch.testing.assert_close(loss, model.loss(x, targets))
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent
