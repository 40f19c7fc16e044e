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
        size: number of processes, `strategy.context_parallel`. model: the recipe's. windows: their lengths, by key.
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
        key, groups = _groups(mixer)
        if not _can_share(size, mixer.heads, groups):
            fitting = [str(other) for other in range(1, mixer.heads + 1) if _can_share(other, mixer.heads, groups)]
            raise ValueError(
                f"strategy.context_parallel is {size}, but model.{part}.heads is {mixer.heads} and model.{part}.{key} "
                f"{groups}, which {size} processes cannot share evenly; with this mixer it may be {', '.join(fitting)}"
            )


def _groups(mixer: MixerConfig) -> tuple[str, int]:
    """How many heads of keys there are, and the key that says so."""
    match mixer:
        case Mamba2Config():
            return "groups", mixer.groups
        case GatedDeltaNetConfig():
            return "heads", mixer.heads
        case AttentionConfig():
            return "kv_heads", mixer.key_heads


def _can_share(size: int, heads: int, groups: int) -> bool:
    """Whether every process can have the group of each of its heads: always, if there is only one, or one per head."""
    if groups in (1, heads):
        return True
    return heads % size == 0 and (groups % size == 0 or size % groups == 0)
