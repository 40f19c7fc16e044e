"""Documents that a model keeps apart are observed as it reads them: each as if it were alone."""

import pytest
import torch

from dla_train.inspection.observe import observe
from dla_train.models import (
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    initialize,
)

TOKENS = [(7 * place * place + 3 * place) % 31 for place in range(40)]
ENDS = [1, 15, 40]


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
        exist = torch.stack(
            [(part.slots_in_use[..., None] > torch.arange(layer.plan.capacity)).sum(0) for part in parts]
        )
        weights = torch.stack([part.weights.nan_to_num() for part in parts])
        expected = (weights * exist).sum(0) / exist.sum(0)
        torch.testing.assert_close(layer.weights, expected, rtol=0, atol=1e-12, equal_nan=True)
    assert together[0].rates.max() > 0
