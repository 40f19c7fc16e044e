"""Lightning's part: the strategy of the recipe, in processes that are there and joined already."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy, Strategy

from dla_train.distributed.config import StrategyConfig
from dla_train.distributed.placement import Placement


def build_strategy(config: StrategyConfig) -> Strategy | str:
    """What to hand to the Trainer as `strategy`."""
    if config.kind == "single":
        return "auto"
    return DDPStrategy(gradient_as_bucket_view=True)


class JoinedProcesses(ClusterEnvironment):
    """Tells Lightning where this process stands; it starts no processes and takes no signals because of it."""

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
