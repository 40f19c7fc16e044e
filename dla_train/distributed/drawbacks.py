"""What is possible with so many processes, but slower than it need be: it is said, and not refused."""

from collections.abc import Iterator

from dla_data.counted import counted
from dla_train.distributed.config import StrategyConfig
from dla_train.models.config import ModelConfig


def drawbacks(strategy: StrategyConfig, model: ModelConfig, nodes: int, devices: int) -> Iterator[str]:
    """Sentences about sharing windows, for the user: heads that the processes do not share evenly, and groups of them
    that span nodes.

    Args:
        strategy, model: sections of the recipe. nodes: machines. devices: processes on each.
    """
    size = strategy.context_parallel
    for heads in sorted({mixer.heads for mixer in model.mixers if mixer.heads % size}):
        most = -(-heads // size)
        yield (
            f"strategy.context_parallel is {size}, and a mixer has {counted(heads, 'head')}: each process takes the "
            f"time of {most}, as if there were {most * size}. A divisor of {heads} wastes nothing."
        )
    if nodes > 1 and devices % size:
        yield (
            f"strategy.context_parallel is {size}, and a node has {counted(devices, 'process')}: some groups that "
            "share windows span nodes, and exchange over the network in every layer."
            + (f" A divisor of {devices} keeps them on their nodes." if devices > 1 else "")
        )
