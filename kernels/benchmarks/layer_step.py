"""A training step of one whole layer of the paper's models, to see what the op's surroundings cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from dla_train.models import DynamicMemory, GatedDeltaNetConfig, Mamba2Config, ModelConfig
from dla_train.models.block import Block

AROUND = ("convolution", "gated_activation", "gated_norm", "l2_norm", "rms_norm", "scaled_heads", "softplus")
"""Modules of `dla_kernels.layers`, each of which chooses its backend."""


def layer_step(shape: str, tokens: int, slots: int, device: str) -> Callable[[], Any]:
    """Forward and backward of one layer at the paper's width of 1,536, under autocast to bfloat16, for one window."""
    memory = DynamicMemory(capacity=slots)
    mixers = {
        "mamba2": Mamba2Config(heads=48, head_dim=64, state_dim=128, memory=memory),
        "gdn": GatedDeltaNetConfig(heads=6, key_dim=192, value_dim=384, memory=memory),
    }
    if shape not in mixers:
        raise SystemExit(f"--layer is for the shapes {', '.join(mixers)} of the paper's models; given {shape}")
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=2, hidden=1536, layers=1, mixer=mixers[shape])
    layer = Block(config, config.mixer)
    for name, parameter in layer.named_parameters():
        torch.nn.init.constant_(parameter, 1.0) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    layer.to(device)
    x = torch.randn(1, tokens, 1536, device=device, requires_grad=True)
    leaves = [x, *layer.parameters()]

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16):
            y, _ = layer(x)
        return torch.autograd.grad(y.float().square().mean(), leaves)

    return step


@contextmanager
def torch_around_the_op() -> Iterator[None]:
    """Within the context, everything around the op is computed by torch."""
    with ExitStack() as patches:
        for name in AROUND:
            patches.enter_context(mock.patch(f"dla_kernels.layers.{name}.torch_or_triton", return_value="torch"))
        yield
