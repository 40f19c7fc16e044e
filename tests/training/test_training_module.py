"""The step itself: accumulation, clipping, decay groups, rate."""

import copy
import math
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from dla_train.data.recipe_data import RecipeData
from dla_train.models import LanguageModel, Mamba2Config, ModelConfig, SingleMemory, initialize
from dla_train.training.config import AdamWConfig, TrainingConfig
from dla_train.training.module import LanguageModelTraining
from dla_train.training.schedules import CosineSchedule
from dla_train.training.trainer import build_trainer

MODEL = ModelConfig(
    vocab_size=40,
    hidden=16,
    layers=2,
    mixer=Mamba2Config(heads=2, head_dim=8, state_dim=8, memory=SingleMemory()),
)
WINDOWS = torch.randint(0, 40, (48, 17), generator=torch.Generator().manual_seed(0))
OPTIMIZER = AdamWConfig(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
SCHEDULE = CosineSchedule(warmup=2, floor=0.1)


def _train(tmp_path, micro_batch, clip: float | None = 0.5, steps=4):
    """Train on `WINDOWS` in order; 12 windows per step. Returns the module."""
    config = TrainingConfig(
        steps=steps, global_batch=12, micro_batch=micro_batch, clip=clip, accelerator="cpu", validate_every=None
    )
    module = LanguageModelTraining(initialize(LanguageModel(MODEL), 0), OPTIMIZER, SCHEDULE, config, seed=0)
    trainer = build_trainer(config, callbacks=[], logger=None, folder=tmp_path)
    trainer.fit(module, DataLoader(WINDOWS, batch_size=micro_batch))  # type: ignore[arg-type]
    assert trainer.global_step == steps
    return module


def _by_hand(clip: float | None = 0.5, steps=4):
    """The same in a dozen lines of plain torch."""
    model = initialize(LanguageModel(MODEL), 0)
    optimizer = torch.optim.AdamW(
        model.parameter_groups(OPTIMIZER.weight_decay), lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER.lr * SCHEDULE.factor(step, steps)
        batch = WINDOWS[12 * step : 12 * (step + 1)]
        optimizer.zero_grad()
        model.loss(batch[:, :-1], batch[:, 1:]).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def _distance(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("micro_batch", [12, 3])
@pytest.mark.parametrize("clip", [0.5, None])
def test_training_is_what_plain_torch_does(tmp_path, micro_batch, clip):
    expected = _by_hand(clip)
    start = initialize(LanguageModel(MODEL), 0)
    moved = _distance(expected, start)
    assert _distance(_train(tmp_path, micro_batch, clip).model, expected) < 2e-3 * moved


def test_the_norm_is_that_before_clipping_and_clipping_changes_the_result(tmp_path):
    tight, loose = _train(tmp_path, 12, clip=1e-4, steps=1), _train(tmp_path, 12, clip=1e4, steps=1)
    assert tight.gradient_norm == loose.gradient_norm > 1e-2
    assert _distance(_by_hand(0.5), _by_hand(None)) > 0, "the clip of the other tests does clip"


def test_norms_and_biases_are_not_decayed(tmp_path):
    """With no gradient at all, only decay moves a weight."""
    module = _train(tmp_path, 12, steps=1)
    before = copy.deepcopy(dict(module.model.named_parameters()))
    optimizer = module.configure_optimizers()
    for parameter in module.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in module.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "head.weight" in moved
    assert not any("norm" in name or name.endswith(("bias", "A_log", "dt_bias", ".D")) for name in moved)


def test_the_rate_follows_the_schedule(tmp_path):
    module = _train(tmp_path, 12, steps=4)
    assert module.rate == OPTIMIZER.lr * SCHEDULE.factor(3, 4) == pytest.approx(0.00325)


def test_the_random_state_is_a_function_of_the_step(tmp_path, monkeypatch):
    """Not of how many micro-batches there were since the start: a resumed run has had fewer."""
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    _train(tmp_path, 4, steps=3)
    assert seeds == [1009 * step + place for step in range(3) for place in range(3)]


def test_the_random_state_is_another_one_on_every_rank_and_in_every_micro_batch(tmp_path, monkeypatch):
    module, seeds = _train(tmp_path, 4, steps=1), []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for rank in range(3):
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, global_step=1, accumulate_grad_batches=2, optimizers=[SimpleNamespace(param_groups=[])]
        )
        for batch_idx in (10, 11):
            module.on_train_batch_start(WINDOWS[:4], batch_idx)
    assert seeds == [1009 + place for place in range(6)]


class Validation(RecipeData):
    """`WINDOWS`, to validate on."""

    tokenizer_path = None  # type: ignore[assignment]
    fingerprints: ClassVar = {}  # type: ignore[assignment]
    extent = "windows"  # type: ignore[assignment]
    window = WINDOWS.shape[1] - 1  # type: ignore[assignment]
    validation_windows = WINDOWS  # type: ignore[assignment]

    def __init__(self, micro_batch):
        super().__init__()
        self.training = TrainingConfig(steps=1, global_batch=micro_batch, micro_batch=micro_batch)

    def val_dataloader(self):
        return DataLoader(WINDOWS, batch_sampler=self.validation_share.batches)  # type: ignore[arg-type]


def test_validation_is_the_mean_over_tokens_not_over_batches(tmp_path):
    """The last batch is smaller: 48 windows in batches of 20, 20 and 8."""
    module = _train(tmp_path, 12, steps=1)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(module, datamodule=Validation(20), verbose=False)
    metrics = trainer.callback_metrics
    with torch.no_grad():
        expected = module.model.loss(WINDOWS[:, :-1], WINDOWS[:, 1:]).item()
    assert metrics["validation_loss"].item() == pytest.approx(expected, rel=1e-6)


def test_validation_of_bfloat16_weights_adds_up_in_float64(tmp_path):
    module = _train(tmp_path, 12, steps=1)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", precision="bf16-true", **options)
    trainer.validate(module, datamodule=Validation(1), verbose=False)
    with torch.no_grad():
        losses = [module.model.loss(window[None, :-1], window[None, 1:]).double() for window in WINDOWS]
    expected = torch.stack(losses).mean().item()
    assert trainer.callback_metrics["validation_loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_one_answer_whose_loss_is_no_number_makes_the_mean_none(bad):
    """An infinite one counted as 1.8e308, the mean over many answers was finite, and the run went on."""
    config = TrainingConfig(steps=1, global_batch=1, micro_batch=1)
    module = LanguageModelTraining(initialize(LanguageModel(MODEL), 0), OPTIMIZER, SCHEDULE, config, seed=0)
    module._add_to_validation(torch.tensor([1.0, bad, 2.0]))
    assert module.validation_loss.compute() == math.inf


def test_z_loss_changes_the_step_but_no_loss_that_is_shown(tmp_path):
    config = TrainingConfig(steps=1, global_batch=12, micro_batch=12, z_loss=0.1)
    module = LanguageModelTraining(initialize(LanguageModel(MODEL), 0), OPTIMIZER, SCHEDULE, config, seed=0)
    plain = initialize(LanguageModel(MODEL), 0)
    shown = module.training_step(WINDOWS, 0)
    loss = plain.loss(WINDOWS[:, :-1], WINDOWS[:, 1:])
    assert torch.equal(shown, loss)
    shown.backward()
    loss.backward()
    penalized, alone = module.model.head.weight.grad, plain.head.weight.grad
    assert penalized is not None
    assert alone is not None
    assert (penalized - alone).norm() > 0.01 * alone.norm()


@pytest.mark.parametrize("value", [-1e-4, float("inf"), float("nan")])
def test_a_z_loss_that_cannot_work_is_refused(value):
    with pytest.raises(ValueError, match=f"z_loss is {value}; it must be a finite number of at least 0"):
        TrainingConfig(steps=1, global_batch=1, micro_batch=1, z_loss=value)
