import pytest
import torch

from dla_train.callbacks.memory_watch import MemoryWatch, means
from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FixedMemory,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    SingleMemory,
    initialize,
)
from dla_train.models.memory import Memory


def _model(memory):
    mixer = Mamba2Config(heads=2, head_dim=8, state_dim=8, memory=memory)
    return initialize(LanguageModel(ModelConfig(vocab_size=50, hidden=16, layers=2, mixer=mixer)), seed=0)


def test_rates_and_slots_are_means_over_all_tokens_seen():
    model = _model(FixedMemory(block=4, capacity=3))
    watch = MemoryWatch(model)
    watch.is_active = True
    for _ in range(3):
        model(torch.zeros(2, 16, dtype=torch.int64))
    # Blocks of 4 in 16 tokens, at most 3 slots: 1, 2, 3 and 3 in use. The plan decides about the first token.
    memory = next(module for module in model.modules() if isinstance(module, Memory))
    plan = memory(torch.zeros(1, 16, 1, 8), torch.zeros(1, 16, 2, 8))
    expected = plan.boundary.double().mean().item()
    assert expected in (3 / 16, 4 / 16)
    assert means(watch.collect()) == {
        "boundary_rate.0": expected,
        "boundary_rate.1": expected,
        "slots_in_use.0": 2.25,
        "slots_in_use.1": 2.25,
    }
    assert watch.columns == ["boundary_rate.0", "boundary_rate.1", "slots_in_use.0", "slots_in_use.1"]
    assert watch.collect() == {}, "begins anew"


@pytest.mark.parametrize(("threshold", "rate"), [(2.0, 0.0), (0.0, 1.0)])
def test_the_extremes_of_dynamic_memory_show(threshold, rate):
    model = _model(DynamicMemory(capacity=4, threshold=threshold))
    watch = MemoryWatch(model)
    watch.is_active = True
    model(torch.randint(0, 50, (2, 32), generator=torch.Generator().manual_seed(0)))
    assert means(watch.collect())["boundary_rate.1"] == pytest.approx(rate, abs=1 / 32)


def test_nothing_is_seen_while_inactive_or_closed():
    model = _model(DynamicMemory(capacity=4))
    watch = MemoryWatch(model)
    model(torch.zeros(1, 8, dtype=torch.int64))
    assert watch.collect() == {}
    watch.is_active = True
    watch.close()
    model(torch.zeros(1, 8, dtype=torch.int64))
    assert watch.collect() == {}


def test_models_without_slots_have_nothing_to_watch():
    assert MemoryWatch(_model(SingleMemory())).columns == []
    attention = ModelConfig(vocab_size=50, hidden=16, layers=2, mixer=AttentionConfig(heads=2))
    assert MemoryWatch(initialize(LanguageModel(attention), seed=0)).columns == []


def test_slots_are_counted_document_by_document():
    model = _model(FixedMemory(block=4, capacity=3))
    watch = MemoryWatch(model)
    watch.is_active = True
    model(torch.zeros(1, 16, dtype=torch.int64), cu_seqlens=torch.tensor([0, 8, 12, 16]))
    found = means(watch.collect())
    # 8 tokens with 1 and 2 slots, then two documents of one block each.
    assert found["slots_in_use.0"] == found["slots_in_use.1"] == 20 / 16
