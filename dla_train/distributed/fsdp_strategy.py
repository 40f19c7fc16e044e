"""PyTorch's `fully_shard` as a Lightning strategy, on GPUs and on the CPU, with our own checkpoints.

Lightning's own `FSDPStrategy` uses the older interface, which needs a GPU; its `ModelParallelStrategy` uses this one,
but brings tensor parallelism with defaults that average nothing. A strategy of our own needs little code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from dla_train.distributed.sharded_state import Part, ShardedState, local
from dla_train.models import LanguageModel
from dla_train.training.module import LanguageModelTraining

_ENTRANCES = ("loss", "hidden_states", "token_losses")
"""Methods besides `forward` that run the whole model."""


class FullyShardedStrategy(ShardedState, DDPStrategy):
    """Each block is a unit that is gathered when it runs; embedding, last norm and head form one more unit.

    With several replicas, consecutive ranks share one: of 8 ranks with 2 replicas, ranks 0 to 3 and ranks 4 to 7.

    Args:
        replicas: of the model, over all ranks; divides their number. reshard_after_forward: of the blocks.
    """

    def __init__(self, replicas: int, reshard_after_forward: bool) -> None:
        super().__init__()
        self.replicas = replicas
        self.reshard_after_forward = reshard_after_forward

    @property
    def shards(self) -> int:
        """Number of ranks that share a replica."""
        return self.world_size // self.replicas

    def model_to_device(self) -> None:
        """Shard the model on its way to the device, which never holds the whole model."""
        assert isinstance(self.lightning_module, LanguageModelTraining)
        mesh = device_mesh(self.root_device.type, self.replicas, self.shards)
        shard(self.lightning_module.model, mesh, self.reshard_after_forward)
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Do not wrap the model in DistributedDataParallel."""

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """For all micro-batches of a step but the last: add up gradients within each replica only, because the replicas
        may be on nodes that are slow to reach. The last micro-batch averages the sums over the replicas."""
        model = self.lightning_module.model
        assert isinstance(model, FSDPModule)
        model.set_requires_all_reduce(False)
        try:
            yield
        finally:
            model.set_requires_all_reduce(True)

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

    def written(self) -> list[Part]:
        """See `ShardedState`; as many ranks as there are replicas hold the same part, and each writes a piece of it."""
        return [part.piece(self.global_rank // self.shards, self.replicas) for part in self.parts()]

    def weights_changed(self) -> None:
        """Do nothing: nothing is derived from the weights before the next forward."""

    def _part(self, name: str, parameter: nn.Parameter) -> Part:
        assert isinstance(parameter, DTensor)
        here = local(parameter.detach())
        rows = parameter.shape[0]
        start = min(-(-rows // self.shards) * (self.global_rank % self.shards), rows)  # cut as by torch.chunk
        size_of_row = parameter.numel() // rows
        return Part(name, tuple(parameter.shape), start * size_of_row, here.view(-1), parameter, 0)


def device_mesh(device_type: str, replicas: int, shards: int) -> DeviceMesh:
    """All ranks in order, `shards` consecutive ones for each replica."""
    if replicas == 1:
        return init_device_mesh(device_type, (shards,))
    return init_device_mesh(device_type, (replicas, shards), mesh_dim_names=("replicas", "shards"))


def shard(model: LanguageModel, mesh: DeviceMesh, reshard_after_forward: bool) -> None:
    """Replace every parameter of `model` by this rank's rows of it, in place.

    Args:
        mesh: see `device_mesh`. reshard_after_forward: of the blocks.
    """
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    # The backward begins with the head right after the forward, so resharding would not pay.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name in _ENTRANCES:
        register_fsdp_forward_method(model, name)
