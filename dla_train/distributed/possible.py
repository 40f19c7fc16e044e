"""What strategies that shard the weights cannot train."""

from dla_train.distributed.config import StrategyConfig
from dla_train.models.config import ModelConfig
from dla_train.models.memory_config import DynamicMemory
from dla_train.models.mixer_config import memory_of


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
