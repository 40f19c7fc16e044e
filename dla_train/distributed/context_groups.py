"""The groups of ranks that share windows."""

import torch.distributed

from dla_train.distributed.config import StrategyConfig
from dla_train.models.context import ALONE, Context


def join_context(strategy: StrategyConfig) -> Context:
    """This rank's group: as many neighbours as `strategy.context_parallel` says, which the placement was checked for.

    All ranks must call this, once they have joined.
    """
    size = strategy.context_parallel
    if size == 1:
        return ALONE
    group, _ = torch.distributed.new_subgroups(size)
    assert isinstance(group, torch.distributed.ProcessGroup)
    return Context(size, torch.distributed.get_rank(group), group.group_name)
