"""Which parameters get weight decay.

Weight decay goes to matrices that multiply activations: linear layers, the embedding and the head, the projection to
slot weights, and the taps of the convolution. The authors of Mamba-2 and Gated DeltaNet exempt `A_log`, `dt_bias` and
`D`, and Log-Linear attention its `L`: decay would pull time scales and slot weights to an arbitrary value. Norm
weights, biases and thresholds are exempt as usual.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dla_train.models.convolution import ShortConvolution
from dla_train.models.head import Head
from dla_train.models.slot_weight import SlotWeight

DECAYED = (nn.Linear, nn.Embedding, Head, SlotWeight, ShortConvolution)
"""Modules whose `weight` decays. No other parameter does."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter of `model` once, in two groups in the order of `named_parameters`.

    Args:
        model: any module built from this package's parts.
        weight_decay: for the group that decays.
    Returns:
        `[{"name": "decay", "params": [...], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [...], "weight_decay": 0.0}]`.
    Raises:
        ValueError: a negative weight decay.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, DECAYED)}
    decay, no_decay = [], []
    for parameter in model.parameters():
        (decay if id(parameter) in decayed else no_decay).append(parameter)
    return [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
