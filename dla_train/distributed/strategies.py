"""The recipe's strategy as a Lightning strategy, for processes that already run and have joined."""

import os

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import Strategy

from dla_train.distributed.config import DDPConfig, DeepSpeedConfig, FSDPConfig, SingleStrategy, StrategyConfig
from dla_train.distributed.ddp_strategy import DataParallelStrategy
from dla_train.distributed.deepspeed_config import deepspeed_config
from dla_train.distributed.placement import Placement
from dla_train.training.config import TrainingConfig


def build_strategy(config: StrategyConfig, training: TrainingConfig, accumulate: int, nodes: int) -> Strategy | str:
    """The `strategy` argument of the Trainer.

    Args:
        config, training: sections of the recipe. accumulate: micro-batches of a step on each process.
        nodes: machines.
    """
    match config:
        case SingleStrategy():
            return "auto"
        case DDPConfig():
            return DataParallelStrategy()
        case DeepSpeedConfig():
            device_type = "cuda" if training.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
            # Must be set before the import, or DeepSpeed would look for a GPU. Importing it takes seconds.
            os.environ.setdefault("DS_ACCELERATOR", device_type)
            from dla_train.distributed.deepspeed_strategy import ZeroStrategy

            return ZeroStrategy(deepspeed_config(config, training, accumulate), training.precision, device_type)
        case FSDPConfig():
            from dla_train.distributed.fsdp_strategy import FullyShardedStrategy

            return FullyShardedStrategy(config.replicas_on(nodes), config.reshard_after_forward)


class JoinedProcesses(ClusterEnvironment):
    """Tells Lightning this process's rank, so that it starts no processes and handles no signals itself."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.placement = placement
        rank_zero_only.rank = placement.rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.placement.address

    @property
    def main_port(self) -> int:
        return self.placement.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.placement.world_size

    def set_world_size(self, size: int) -> None:
        assert size == self.placement.world_size

    def global_rank(self) -> int:
        return self.placement.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.placement.rank

    def local_rank(self) -> int:
        return self.placement.local_rank

    def node_rank(self) -> int:
        return self.placement.rank // self.placement.devices
