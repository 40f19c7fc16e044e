"""Bytes needed on each device while training, and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dla_train.config.recipe import Recipe
from dla_train.estimate.activations import WIDE, Setting, saved_bytes
from dla_train.estimate.op_memory import op_memory
from dla_train.estimate.shares import shares
from dla_train.models import LanguageModel
from dla_train.models.config import ModelConfig
from dla_train.models.loss import ROWS
from dla_train.training.optimizers import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a recipe needs, in bytes.

    Attributes:
        parameters: what a device keeps of them, with the buffers. gradients, optimizer: likewise. All three are exact
            for `single` and `ddp`.
        gathered: weights that other devices keep, while they are needed here.
        buckets: for the exchange of gradients between devices. With `ddp`, gradients are views of the buckets, except
            that they need memory of their own in steps of several micro-batches.
        activations: kept for the backward, by part. op: working memory of the op, while one layer's backward runs.
        logits: of the rows that the head computes at once.
        checkpoint: size of one on disk.
        in_main_memory: offloaded to the machine's main memory, per device.
        stepped: what a device's optimizer step reads and writes.
    """

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    buckets: int
    activations: dict[str, int]
    op: int
    logits: int
    checkpoint: int
    in_main_memory: int
    stepped: int

    @property
    def on_device(self) -> dict[str, int]:
        """What a device's memory holds at its peak, by part."""
        return {
            "parameters": self.parameters,
            "gathered weights": self.gathered,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "exchange of gradients": self.buckets,
            "activations": sum(self.activations.values()),
            "the op at work": self.op,
            "logits": self.logits,
        }

    @property
    def fixed(self) -> int:
        """The part of it that does not depend on the window."""
        return self.total - sum(self.activations.values()) - self.op - self.logits

    @property
    def total(self) -> int:
        """Memory of a device at its peak."""
        return sum(self.on_device.values())


def footprint(recipe: Recipe, model: LanguageModel, devices: int, setting: Setting) -> Footprint:
    """What `recipe` needs on each of `devices`, by its strategy.

    Args:
        model: of the recipe, on the meta device; converted to bfloat16 in place if the precision is bf16-true.
        setting: of a micro-batch.
    """
    training = recipe.training
    if training.precision == "bf16-true":
        model.to(torch.bfloat16)
    parameters = _bytes(list(model.parameters()))
    optimizer = optimizer_bytes(recipe, model)
    buffers = _bytes(list(model.buffers()))
    shared = shares(recipe, model, devices, parameters, optimizer)
    in_step = (2 * (parameters + optimizer) + parameters) // shared.step_shares
    return Footprint(
        parameters=shared.parameters + buffers,
        gathered=shared.gathered,
        gradients=shared.gradients,
        optimizer=shared.optimizer,
        buckets=shared.buckets,
        activations=saved_bytes(recipe.model, setting),
        op=op_memory(recipe.model, setting),
        logits=logit_bytes(recipe.model, setting),
        checkpoint=parameters + buffers + optimizer,
        in_main_memory=shared.in_main_memory,
        stepped=0 if shared.in_main_memory else in_step,
    )


def logit_bytes(config: ModelConfig, setting: Setting) -> int:
    """Of the rows that the head computes at once."""
    return min(setting.tokens, ROWS) * config.vocab_size * (2 * WIDE + 2 * setting.a)


def checkpoint_bytes(recipe: Recipe) -> int:
    """Size of one checkpoint on disk: weights, buffers and optimizer state."""
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    if recipe.training.precision == "bf16-true":
        model.to(torch.bfloat16)
    weights = [*model.parameters(), *model.buffers()]
    return _bytes(weights) + optimizer_bytes(recipe, model)


def optimizer_bytes(recipe: Recipe, model: LanguageModel) -> int:
    """Size of the state that the recipe's optimizer makes in its first step on `model`, which is on the meta device."""
    optimizer = build_optimizer(recipe.optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    values = [value for state in optimizer.state.values() for value in state.values()]
    return _bytes([value for value in values if torch.is_tensor(value)])


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
