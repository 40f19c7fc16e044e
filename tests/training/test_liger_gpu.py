"""Liger's kernels on a GPU against plain torch there: `make test-gpu`. In bfloat16, which the interpreter cannot do."""

import copy

import pytest
import torch

pytest.importorskip("liger_kernel")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

from dla_train.models import AttentionConfig, LanguageModel, ModelConfig, initialize  # noqa: E402
from dla_train.training.fused import use_liger  # noqa: E402

ROUNDING = {"32-true": 1e-4, "bf16-mixed": 2e-2, "bf16-true": 4e-2}


@pytest.mark.parametrize("precision", ROUNDING)
def test_losses_and_gradients_are_those_of_torch(precision):
    config = ModelConfig(vocab_size=4000, hidden=256, layers=2, mixer=AttentionConfig(heads=4))
    plain = initialize(LanguageModel(config), seed=0).cuda()
    if precision == "bf16-true":
        plain.to(torch.bfloat16)
    fused = copy.deepcopy(plain)
    use_liger(fused)
    tokens, targets = torch.randint(0, 4000, (2, 2, 512), device="cuda")
    losses = []
    for model in (plain, fused):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = model.loss(tokens, targets, z_loss=1e-3)
        loss.backward()
        losses.append(loss.detach().double())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    other = dict(fused.named_parameters())
    for name, parameter in plain.named_parameters():
        expected, found = parameter.grad.double(), other[name].grad.double()
        assert (found - expected).norm() <= ROUNDING[precision] * expected.norm(), name


def test_memory_is_no_more_than_that_of_chunks_in_torch():
    config = ModelConfig(vocab_size=32_000, hidden=512, layers=1, mixer=AttentionConfig(heads=4))
    model = initialize(LanguageModel(config), seed=0).cuda()
    hidden = torch.randn(1, 16_384, 512, device="cuda", requires_grad=True)
    targets = torch.randint(0, 32_000, (1, 16_384), device="cuda")
    peaks = []
    for is_fused in (False, True):
        if is_fused:
            use_liger(model)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            model.head(hidden, targets).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        model.zero_grad(set_to_none=True)
        hidden.grad = None
    assert peaks[1] <= peaks[0]
    assert max(peaks) < 16_384 * 32_000 * 4 / 2
