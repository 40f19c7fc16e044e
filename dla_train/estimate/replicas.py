"""How many replicas of the model so many devices keep with `strategy.replicas`, which may count nodes."""

from __future__ import annotations

from dla_data.counted import counted
from dla_train.config.load import LoadedRecipe
from dla_train.distributed.config import FSDPConfig
from dla_train.distributed.shares import check_replicas


def replicas_of(strategy: FSDPConfig, devices: int) -> int:
    """The number of replicas on `devices` devices, which `require_replicas` has accepted."""
    nodes = devices // strategy.devices if strategy.devices is not None else strategy.nodes or 1
    return strategy.replicas_on(nodes)


def require_replicas(loaded: LoadedRecipe, devices: int) -> None:
    """Refuse replicas that `devices` devices cannot keep, or that the recipe says too little about.

    Raises:
        UsageError: names the key, and what would fit.
    """
    named = counted(devices, "device")
    check_replicas(loaded, devices, named)
    strategy = loaded.recipe.strategy
    if not isinstance(strategy, FSDPConfig) or strategy.replicas != "nodes":
        return
    key = "devices" if strategy.devices is not None else "nodes"
    given = getattr(strategy, key)
    if given is None and devices > 1:
        raise loaded.problem(
            "strategy.replicas",
            f"it is nodes, but nothing says on how many nodes the {named} are. Set strategy.devices (per node) or "
            "strategy.nodes.",
        )
    if devices % (given or 1):
        raise loaded.problem(
            f"strategy.{key}",
            f"it is {given}, which does not divide {named}, and strategy.replicas is nodes: each node must have "
            "equally many. Change it, or --devices.",
        )
