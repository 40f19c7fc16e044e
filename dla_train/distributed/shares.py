"""Whether a batch can be divided among processes, and they among replicas and among groups that share windows; checked
before any of them exists."""

from dataclasses import replace

from dla_data.counted import counted
from dla_train.config.load import LoadedRecipe
from dla_train.config.recipe import Recipe
from dla_train.distributed.config import FSDPConfig, SingleStrategy

_PROCESSES = ("strategy.devices", "strategy.nodes")
"""The keys that may say how many there are."""


def check_groups(loaded: LoadedRecipe, world_size: int, processes: str) -> None:
    """Refuse groups of `strategy.context_parallel` that `world_size` processes cannot form; `processes` names them in
    the message.

    Raises:
        UsageError: lists the sizes of groups that would fit.
    """
    group = loaded.recipe.strategy.context_parallel
    if world_size % group == 0:
        return
    fitting = [size for size in range(1, world_size + 1) if world_size % size == 0 and _may_share(loaded.recipe, size)]
    raise loaded.problem(
        "strategy.context_parallel",
        f"it is {group}, but {processes} cannot form groups of {group} that share windows. It may be "
        f"{', '.join(map(str, fitting))}, or take a multiple of {group}.",
        _PROCESSES,
    )


def _may_share(recipe: Recipe, size: int) -> bool:
    """Whether the recipe would be sound with groups of `size` processes."""
    strategy = recipe.strategy
    assert not isinstance(strategy, SingleStrategy)
    try:
        replace(recipe, strategy=replace(strategy, context_parallel=size))
    except ValueError:
        return False
    return True


def check_shares(loaded: LoadedRecipe, world_size: int, processes: str) -> None:
    """Refuse a batch that `world_size` processes cannot divide evenly, and what `check_groups` refuses; `processes`
    names them in the message.

    Raises:
        UsageError: says which size of micro-batch or of group would fit, if any.
    """
    check_groups(loaded, world_size, processes)
    training, group = loaded.recipe.training, loaded.recipe.strategy.context_parallel
    groups = world_size // group
    if training.global_batch % (training.micro_batch * groups) == 0:
        return
    fitting = [size for size in range(1, training.global_batch + 1) if training.global_batch % (size * groups) == 0]
    advice = (
        f"training.micro_batch={fitting[-1] if fitting[-1] < training.micro_batch else fitting[0]} would fit"
        if fitting
        else f"it must be a multiple of {groups}"
    )
    if group > 1:
        processes = f"{processes} in {counted(groups, 'group')} of {group}"
    raise loaded.problem(
        "training.global_batch",
        f"it is {training.global_batch}, which {processes} cannot share out in micro-batches of "
        f"{training.micro_batch}; {advice}.",
        ("training.micro_batch", "strategy.context_parallel", *_PROCESSES),
    )


def check_replicas(loaded: LoadedRecipe, world_size: int, processes: str) -> None:
    """Refuse a number of replicas that `world_size` processes cannot keep, each among equally many of them;
    `processes` names them in the message.

    Raises:
        UsageError: lists the numbers that would fit.
    """
    strategy = loaded.recipe.strategy
    # One replica per node always fits, because nodes have equally many processes.
    if not isinstance(strategy, FSDPConfig) or strategy.replicas == "nodes" or world_size % strategy.replicas == 0:
        return
    fitting = ", ".join(str(number) for number in range(1, world_size + 1) if world_size % number == 0)
    raise loaded.problem(
        "strategy.replicas",
        f"it is {strategy.replicas}, but {processes} cannot form {strategy.replicas} groups of equal size, each with a "
        f"replica of the model. It may be {fitting}, or nodes (one replica per node).",
        _PROCESSES,
    )
