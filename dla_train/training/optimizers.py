"""Optimizers from the recipe."""

import torch

from dla_train.models import LanguageModel
from dla_train.training.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: LanguageModel) -> torch.optim.Optimizer:
    """AdamW over the model's groups with and without weight decay; the rate is set anew at every step."""
    groups = model.parameter_groups(config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
