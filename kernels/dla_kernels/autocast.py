"""Keeps autocast out of the op, which chooses its own types: states, decays and scores are always float32."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from dla_kernels.compiled_graphs import constant_in_compiled_graphs, with_graphs_of_its_own

P = ParamSpec("P")
R = TypeVar("R")


@constant_in_compiled_graphs  # those of torch 2.11 would break here
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Runs `function` with autocast off on the device of its first tensor.

    Under autocast the products inside would be taken in 16 bits: states would lose their digits over thousands of
    tokens, decisions would differ from those made without autocast, and the backward pass, which runs outside, would
    meet mixed types.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = (x for x in itertools.chain(args, kwargs.values()) if isinstance(x, Tensor))
        device = next((x.device.type for x in tensors), "cpu")
        if not _has_autocast(device):  # "meta", for one
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return with_graphs_of_its_own(run)
