"""Documents that a model keeps apart are observed as it reads them: each as if it were alone."""

import pytest
import torch

from dla_train.inspection.observe import observe
from dla_train.inspection.slot_life import lives_of
from dla_train.models import (
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    initialize,
)
from dla_train.models.slot_weight import SlotWeight

TOKENS = [(7 * place * place + 3 * place) % 31 for place in range(40)]
ENDS = [1, 15, 40]


def existing(plan):
    """`[T, H, M]`: whether there is a slot of each age after each token, from the lives of the slots."""
    found = torch.zeros(*plan.shift.shape[1:], plan.capacity, dtype=torch.bool)
    for head, life in enumerate(lives_of(plan)):
        for now in range(plan.shift.shape[1]):
            held = sorted(
                ((spell.first, spell.end) for spell in life if spell.since <= now < spell.until), reverse=True
            )
            ages = range(len(held))
            if plan.collapse:  # a slot's level is told by the tokens that it holds: none but the open one, 1, 2, 4, ...
                ages = [0, *(min((end - first).bit_length(), plan.capacity - 1) for first, end in held[1:])]
            found[now, head, list(ages)] = True
    return found


@pytest.mark.parametrize(
    "memory",
    [DynamicMemory(capacity=4, threshold=1.0), FixedMemory(block=3, capacity=3), FenwickMemory(capacity=4)],
    ids=lambda memory: memory.kind,
)
def test_each_is_as_if_it_were_alone(memory):
    mixer = Mamba2Config(heads=2, head_dim=4, state_dim=4, memory=memory)
    model = initialize(LanguageModel(ModelConfig(vocab_size=31, hidden=8, layers=2, mixer=mixer)), 0).double()
    together = observe(model, TOKENS, ENDS)
    alone = [observe(model, TOKENS[begin:end]) for begin, end in zip([0, *ENDS], ENDS, strict=False)]
    for number, layer in enumerate(together):
        parts = [layers[number] for layers in alone]
        assert torch.equal(layer.plan.shift[0], torch.cat([part.plan.shift[0] for part in parts]))
        assert torch.equal(layer.slots_in_use, torch.cat([part.slots_in_use for part in parts]))
        opened = torch.stack([part.plan.boundary[0, 1:].double().sum(0) for part in parts]).sum(0)
        torch.testing.assert_close(layer.rates, opened / 37, rtol=0, atol=1e-12)
        exist = torch.stack([existing(part.plan).sum(0) for part in parts])
        weights = torch.stack([part.weights.nan_to_num() for part in parts])
        expected = (weights * exist).sum(0) / exist.sum(0)
        torch.testing.assert_close(layer.weights, expected, rtol=0, atol=1e-12, equal_nan=True)
    assert together[0].rates.max() > 0


def test_an_empty_level_of_a_fenwick_memory_weighs_nothing():
    """Levels that are empty at the moment were averaged, too: weights that nothing is read with."""
    mixer = Mamba2Config(heads=2, head_dim=4, state_dim=4, memory=FenwickMemory(capacity=4))
    model = initialize(LanguageModel(ModelConfig(vocab_size=31, hidden=8, layers=1, mixer=mixer)), 0).double()
    seen = []
    [weights] = [module for module in model.modules() if isinstance(module, SlotWeight)]
    weights.register_forward_hook(lambda module, given, weight: seen.append(weight[0]))
    [layer] = observe(model, TOKENS)
    position = torch.arange(len(TOKENS))
    full = [position >= 0, position % 2 == 1, position // 2 % 2 == 1, position >= 4]
    expected = torch.stack([seen[0][exists, :, level].mean(0) for level, exists in enumerate(full)], -1)
    torch.testing.assert_close(layer.weights, expected.detach(), rtol=0, atol=1e-12)
