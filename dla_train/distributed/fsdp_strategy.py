"""PyTorch's `fully_shard` as a Lightning strategy, on GPUs and on the CPU, with our own checkpoints.

Lightning's own `FSDPStrategy` uses the older interface, which needs a GPU; its `ModelParallelStrategy` uses this one,
but brings tensor parallelism with defaults that average nothing. A strategy of our own needs little code.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from dla_train.distributed.sharded_state import Part, ShardedState, local
from dla_train.models import LanguageModel
from dla_train.training.module import LanguageModelTraining

_ENTRANCES = ("loss", "hidden_states", "token_losses")
"""Methods besides `forward` that run the whole model."""


class FullyShardedStrategy(ShardedState, DDPStrategy):
    """Each block is a unit that is gathered when it runs; embedding, last norm and head form one more unit.

    Args:
        reshard_after_forward: of the blocks.
    """

    def __init__(self, reshard_after_forward: bool) -> None:
        super().__init__()
        self.reshard_after_forward = reshard_after_forward

    def model_to_device(self) -> None:
        """Shard the model on its way to the device, which never holds the whole model."""
        assert isinstance(self.lightning_module, LanguageModelTraining)
        shard(self.lightning_module.model, self.root_device.type, self.world_size, self.reshard_after_forward)
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Do not wrap the model in DistributedDataParallel."""

    def torch_optimizer(self) -> torch.optim.Optimizer:
        """See `ShardedState`."""
        return self.optimizers[0]

    def groups(self) -> list[dict[str, Any]]:
        """See `ShardedState`."""
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        return [
            {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
            for group in self.torch_optimizer().param_groups
        ]

    def parts(self) -> list[Part]:
        """See `ShardedState`."""
        # A forward without a backward, as in validation, may have left weights gathered.
        for module in self.lightning_module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return [self._part(name, parameter) for name, parameter in self.lightning_module.named_parameters()]

    def weights_changed(self) -> None:
        """Do nothing: nothing is derived from the weights before the next forward."""

    def _part(self, name: str, parameter: nn.Parameter) -> Part:
        assert isinstance(parameter, DTensor)
        here = local(parameter.detach())
        rows = parameter.shape[0]
        start = min(-(-rows // self.world_size) * self.global_rank, rows)  # cut as by torch.chunk
        size_of_row = parameter.numel() // rows
        return Part(name, tuple(parameter.shape), start * size_of_row, here.view(-1), parameter, 0)


def shard(model: LanguageModel, device_type: str, ranks: int, reshard_after_forward: bool) -> None:
    """Replace every parameter of `model` by this rank's rows of it, in place."""
    mesh = init_device_mesh(device_type, (ranks,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    # The backward begins with the head right after the forward, so resharding would not pay.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name in _ENTRANCES:
        register_fsdp_forward_method(model, name)
