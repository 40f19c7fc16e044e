"""Optimizers from the recipe."""

from typing import Any

import torch
from torch import nn

from dla_train.models import LanguageModel
from dla_train.training.config import AdamWConfig, OptimizerConfig
from dla_train.training.muon import MuonWithAdamW, can_be_fused


def build_optimizer(config: OptimizerConfig, model: LanguageModel) -> torch.optim.Optimizer:
    """The optimizer of `config` over all parameters; the training module sets the rate anew at every step.

    From a checkpoint it loads only its state. Weight decay and other settings come from the recipe, because a run that
    branches off may change them.
    """
    optimizer = _build(config, model)
    optimizer.register_load_state_dict_pre_hook(_with_own_options)
    return optimizer


def _with_own_options(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
    return {**state_dict, "param_groups": [{**own, "params": saved["params"]} for own, saved in groups]}


def _build(config: OptimizerConfig, model: LanguageModel) -> torch.optim.Optimizer:
    groups = model.parameter_groups(config.weight_decay)
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=can_be_fused(model.parameters())
        )
    linear = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    matrices = [module.get_parameter("weight") for module in linear]
    apart = {id(weight) for weight in matrices}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in apart]} for group in groups]
    return MuonWithAdamW(
        matrices,
        others,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        betas=config.betas,
        eps=config.eps,
    )
