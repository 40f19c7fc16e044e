"""What looks at memories lets compiled blocks share their graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dla_kernels import Plan
from dla_train.callbacks.memory_watch import MemoryWatch
from dla_train.models import DynamicMemory, LanguageModel, Mamba2Config, ModelConfig, initialize
from dla_train.models.steering import ThresholdSteering

LOOKING = {"watch": MemoryWatch, "steering": lambda model: ThresholdSteering(model, 0.2, 0.1)}


def plan_stand_in(k: Tensor, v: Tensor, **options: Any) -> Plan:
    """A plan that is made inside the graph, as on a GPU."""
    score = v.sum(-1)
    return Plan(shift=(score > 0).int() - 1, score=score.abs(), capacity=4)


def op_stand_in(q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: Plan, **options: Any) -> tuple[Any, None]:
    return v + slot_weight.sum(-1, keepdim=True), None


@pytest.mark.parametrize("name", LOOKING)
def test_there_are_no_more_graphs_with_more_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dla_train.models.memory.segment", plan_stand_in)
    monkeypatch.setattr("dla_train.models.memory.multi_state_attention", op_stand_in)
    mixer = Mamba2Config(heads=2, head_dim=8, state_dim=8, memory=DynamicMemory(capacity=4))
    model = initialize(LanguageModel(ModelConfig(vocab_size=50, hidden=16, layers=4, mixer=mixer)), seed=0)
    looking = LOOKING[name](model)
    looking.is_active = True
    model.compile_blocks(backend="aot_eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    tokens = torch.arange(24).view(2, 12)
    for _ in range(3):
        model.loss(tokens, tokens)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, "one for the first micro-batch of a step, and one that adds to what was seen"
