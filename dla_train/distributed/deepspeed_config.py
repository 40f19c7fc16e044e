"""DeepSpeed's configuration: our defaults, the values that the recipe decides, and the user's keys, which override
them.

Recipes are read without importing DeepSpeed, which takes seconds; `require_known_keys` checks keys against it when a
run starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dla_train.config.overrides import nearest

if TYPE_CHECKING:
    from dla_train.config.load import LoadedRecipe
    from dla_train.distributed.config import DeepSpeedConfig
    from dla_train.training.config import TrainingConfig

DECIDED_ELSEWHERE = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "managed_gradient_accumulation": "training.global_batch and training.micro_batch",
    "gradient_clipping": "training.clip",
    "optimizer": "the section optimizer",
    "scheduler": "the section schedule",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "amp": "training.precision",
    "data_types": "training.precision",
    "torch_autocast.enabled": "training.precision",
    "torch_autocast.dtype": "training.precision",
    "zero_optimization.stage": "strategy.stage",
    "zero_optimization.offload_optimizer": "strategy.offload_optimizer",
    "zero_optimization.cpu_offload": "strategy.offload_optimizer",
    "zero_optimization.compute_grad_norm": "the metrics, which show the gradient's norm: it is true",
    "zero_optimization.elastic_checkpoint": "dla-train, which writes checkpoints itself",
    "zero_optimization.load_from_fp32_weights": "dla-train, which reads checkpoints itself",
    "zero_allow_untested_optimizer": "the section optimizer: it is true",
    "checkpoint": "the section checkpoint",
    "elasticity": "strategy.devices and strategy.nodes",
    "activation_checkpointing": "training.activation_checkpointing",
    "seed": "seed",
}
"""Dotted keys of DeepSpeed whose values are decided elsewhere, and where: the messages name that place."""

UNSUPPORTED = {
    "zero_optimization.zenflow": "its steps are not those of the recipe's optimizer",
    "zero_optimization.mics_shard_size": "its replicas of shards have no place in our checkpoints",
    "zero_optimization.offload_param.nvme_path": "what lies on disk is not in our checkpoints",
    "compression_training": "it trains another model than the recipe's",
    "pipeline": "the model is not cut into stages",
    "tensor_parallel": "the model is not cut into columns",
    "sequence_parallel_size": "it needs a model that knows of it; strategy.context_parallel shares windows",
    "autotuning": "it starts runs of its own",
    "hybrid_engine": "it is for generation",
    "data_efficiency": "batches are a function of recipe and step",
    "curriculum_learning": "batches are a function of recipe and step (data.curriculum)",
}


SECTIONS = ("zero_optimization", "torch_autocast", "comms_logger", "flops_profiler", "aio", "compile", "timers")
"""Keys of DeepSpeed that hold further keys."""

KEYS = (
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op",
    "disable_allgather", "zero_force_ds_cpu_optimizer", "wall_clock_breakdown", "memory_breakdown", "dump_state",
    "steps_per_print", "disable_python_gc", "log_level", "tensorboard", "wandb", "csv_monitor", "comet",
)  # fmt: skip
"""Further keys of DeepSpeed that a run may set. DeepSpeed itself silently ignores keys that it does not know."""


def deepspeed_config(strategy: DeepSpeedConfig, training: TrainingConfig, accumulate: int) -> dict[str, Any]:
    """The whole configuration of a run.

    Args:
        strategy, training: sections of the recipe. accumulate: micro-batches of a step on each process.
    """
    zero: dict[str, Any] = {
        "stage": strategy.stage,
        "contiguous_gradients": True,
        "overlap_comm": True,  # exchange gradients during the backward
        "reduce_scatter": True,
        # In elements. The buffers, float32, come on top of the gradients: 200 MB, doubled by overlap_comm.
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
    }
    if strategy.stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 50_000_000,  # elements gathered ahead of use
            "stage3_param_persistence_threshold": 10_000,  # smaller weights stay whole
            # Elements gathered at one time, a few large blocks; DeepSpeed's default of 1e9 would never free any.
            "stage3_max_live_parameters": 100_000_000,
            "stage3_max_reuse_distance": 100_000_000,
        }
    if strategy.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": training.accelerator != "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": training.clip or 0.0,
        "zero_allow_untested_optimizer": True,
        # PyTorch's fused AdamW also works on the CPU; DeepSpeed's own must be compiled first, which takes minutes.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,  # the console is ours
        "zero_optimization": zero,
    }
    if training.precision == "bf16-mixed":
        # Gradients are exchanged without rounding, unless the user names modules.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return _laid_over(config, strategy.config)


def require_free_keys(config: Mapping[str, Any]) -> None:
    """Refuse keys of `strategy.config` that must not be set there.

    Raises:
        ValueError: names the key, and where to set it instead, or the nearest known key.
    """
    for name, value in config.items():
        if name in SECTIONS and not isinstance(value, Mapping):
            raise ValueError(f"config.{name} is {value!r}; it must be a section of keys and values")
    for key in _dotted(config):
        for taken, where in DECIDED_ELSEWHERE.items():
            if key == taken or key.startswith(f"{taken}."):
                raise ValueError(f"config.{key} is decided by {where}; take it out")
        for refused, reason in UNSUPPORTED.items():
            if key == refused or key.startswith(f"{refused}."):
                raise ValueError(f"config.{key} is not supported: {reason}; take it out")
    for name in config:
        if name not in (*SECTIONS, *KEYS):
            guess = nearest(name, (*SECTIONS, *KEYS))
            hint = f"did you mean {guess}? " if guess else ""
            raise ValueError(f"config.{name} is no key for DeepSpeed; {hint}it takes {', '.join((*SECTIONS, *KEYS))}")


def require_known_keys(loaded: LoadedRecipe) -> None:
    """Refuse keys and values in `strategy.config.zero_optimization` that DeepSpeed does not accept.

    Raises:
        UsageError: names the key, and what DeepSpeed says about it.
    """
    strategy = loaded.recipe.strategy
    if strategy.kind != "deepspeed" or "zero_optimization" not in strategy.config:
        return
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**{**strategy.config["zero_optimization"], "stage": strategy.stage})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("strategy.config.zero_optimization", *first["loc"])))
        raise loaded.problem(key, f"DeepSpeed says: {first['msg']}.") from error


def _dotted(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in config.items():
        keys += [f"{prefix}{name}", *(_dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [])]
    return keys


def _laid_over(config: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in further.items():
        inner = merged.get(name)
        merged[name] = _laid_over(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged
