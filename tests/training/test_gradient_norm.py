"""The norm that clipping goes by, in float32 whatever the gradients are in."""

import pytest
import torch

from dla_train.models import AttentionConfig, LanguageModel, ModelConfig, initialize
from dla_train.training.config import AdamWConfig, TrainingConfig
from dla_train.training.gradient_norm import gradient_norm
from dla_train.training.module import LanguageModelTraining
from dla_train.training.schedules import ConstantSchedule
from tests.operator_calls import Calls

SHAPES = [(300, 200), (64,), (7, 5, 3), (1,)]
MODEL = ModelConfig(vocab_size=40, hidden=16, layers=1, mixer=AttentionConfig(heads=2))


def drawn(*dtypes):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(dtype) for shape, dtype in zip(SHAPES, dtypes, strict=True)]


def exact(gradients):
    return torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()


@pytest.mark.parametrize(
    "dtypes",
    [[torch.float32] * 4, [torch.bfloat16] * 4, [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]],
    ids=["float32", "bfloat16", "both"],
)
def test_the_norm_is_as_exact_as_that_of_float32_gradients(dtypes):
    gradients = drawn(*dtypes)
    norm = gradient_norm(gradients)
    in_float32 = torch.nn.utils.get_total_norm([gradient.float() for gradient in gradients])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(in_float32.item(), rel=1e-7)
    assert norm.item() == pytest.approx(exact(gradients), rel=1e-5), "a sum of 60,000 squares in float32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_tensors_are_read_by_one_call(dtype):
    """Whether there are few or many; on a GPU these are few kernels."""
    gradients = drawn(*[dtype] * 4)
    numbers = []
    for some in (gradients, gradients * 5):
        with Calls() as calls:
            gradient_norm(some)
        numbers.append(calls.number)
    assert numbers[0] == numbers[1]
    assert numbers[0]["aten::_foreach_norm.Scalar"] == 1


def test_in_float32_it_is_torchs_own_to_the_last_bit_and_float64_keeps_its_digits():
    gradients = drawn(*[torch.float32] * 4)
    assert torch.equal(gradient_norm(gradients), torch.nn.utils.get_total_norm(gradients))
    gradients = drawn(*[torch.float64] * 4)
    assert gradient_norm(gradients).item() == pytest.approx(exact(gradients), rel=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad):
    gradients = drawn(*[torch.bfloat16] * 4)
    gradients[2][0, 0, 0] = bad
    assert not gradient_norm(gradients).isfinite()


def test_a_step_with_bfloat16_weights_clips_by_the_exact_norm_and_shows_it():
    """A norm that bfloat16 cannot hold, a hundredth of it as the limit: what is left has that size."""
    model = initialize(LanguageModel(MODEL), 0).bfloat16()
    training = TrainingConfig(steps=1, global_batch=2, micro_batch=2, clip=0.01, precision="bf16-true")
    module = LanguageModelTraining(model, AdamWConfig(lr=0.1), ConstantSchedule(), training, seed=0)
    tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    module.training_step(tokens, 0).backward()
    before = exact([parameter.grad for parameter in model.parameters()])
    module.configure_gradient_clipping(module.configure_optimizers())
    assert module.gradient_norm == pytest.approx(before, rel=1e-5)
    assert module.gradient_norm != torch.tensor(module.gradient_norm).bfloat16().item()
    after = exact([parameter.grad for parameter in model.parameters()])
    assert after == pytest.approx(0.01, rel=1e-3), "the elements are rounded to bfloat16, in either direction"
