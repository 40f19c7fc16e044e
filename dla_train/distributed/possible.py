"""What strategies that shard the weights, or share windows, cannot train."""

from collections.abc import Iterable, Mapping

from dla_train.distributed.config import StrategyConfig
from dla_train.models.config import ModelConfig
from dla_train.models.memory_config import DynamicMemory
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig, memory_of


def require_possible(strategy: StrategyConfig, model: ModelConfig, optimizer: str, precision: str) -> None:
    """Refuse a recipe whose other sections are incompatible with its strategy.

    Args:
        strategy, model: sections of the recipe. optimizer: its kind. precision: of training.
    Raises:
        ValueError: names the key, and what would work.
    """
    if strategy.kind == "deepspeed" and optimizer == "muon":
        raise ValueError(
            "optimizer.kind is muon, which steps by whole matrices, and DeepSpeed cuts them into flat pieces; "
            "take adamw, or strategy fsdp or ddp"
        )
    if strategy.kind == "deepspeed" and precision == "bf16-true":
        raise ValueError(
            "training.precision is bf16-true, but strategy deepspeed keeps float32 weights; take bf16-mixed, which "
            "multiplies in bfloat16 as well"
        )
    if strategy.kind not in ("deepspeed", "fsdp"):
        return
    for key, part in (("mixer", model), ("hybrid.mixer", model.hybrid)):
        memory = None if part is None else memory_of(part.mixer)
        if isinstance(memory, DynamicMemory) and memory.learn_threshold and memory.calibrate_rate is not None:
            raise ValueError(
                f"model.{key}.memory.calibrate_rate is given and learn_threshold true, but strategy {strategy.kind} "
                "cuts up the learned thresholds, which calibration writes; leave one of them out, or take strategy ddp"
            )


def require_shareable(size: int, model: ModelConfig, windows: Mapping[str, Iterable[int]]) -> None:
    """Refuse windows or heads that a group of processes cannot share.

    Args:
        size: of a group, `strategy.context_parallel`. model: the recipe's. windows: lengths of windows, by key.
    Raises:
        ValueError: names the key, and what would work.
    """
    for key, lengths in windows.items():
        for length in lengths:
            if length % size:
                raise ValueError(
                    f"strategy.context_parallel is {size}, but {key} is {length}, which {size} processes cannot share "
                    f"evenly; make it a multiple of {size}"
                )
    for part, mixer in (("mixer", model.mixer), *([("hybrid.mixer", model.hybrid.mixer)] if model.hybrid else [])):
        for key, number, may_be_fewer in _heads(mixer):
            if number % size and not (may_be_fewer and size % number == 0):
                fitting = [
                    other
                    for other in range(1, mixer.heads + 1)
                    if all(n % other == 0 or (fewer and other % n == 0) for _, n, fewer in _heads(mixer))
                ]
                raise ValueError(
                    f"strategy.context_parallel is {size}, but model.{part}.{key} is {number}, which {size} processes "
                    f"cannot share evenly; with this mixer it may be {', '.join(map(str, fitting))}"
                )


def _heads(mixer: MixerConfig) -> list[tuple[str, int, bool]]:
    """Key, number, and whether there may be fewer than processes: then each is computed by several."""
    match mixer:
        case Mamba2Config():
            return [("heads", mixer.heads, False), ("groups", mixer.groups, True)]
        case GatedDeltaNetConfig():
            return [("heads", mixer.heads, False)]
        case AttentionConfig():
            return [("heads", mixer.heads, False), ("kv_heads", mixer.key_heads, True)]
