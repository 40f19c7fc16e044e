"""The recipe's `strategy` section: on how many devices, and how they share weights, gradients and optimizer states.

The numbers of processes may always be left out: they are then those of the launcher (torchrun, srun), or one process
per GPU of this machine.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from dla_train.distributed.deepspeed_config import require_free_keys


@dataclass(frozen=True, kw_only=True)
class SingleStrategy:
    """One process, one device."""

    kind: Literal["single"] = "single"

    @property
    def devices(self) -> int:
        """Processes per node."""
        return 1

    @property
    def nodes(self) -> int:
        """Machines."""
        return 1

    @property
    def context_parallel(self) -> int:
        """Processes that share windows."""
        return 1


@dataclass(frozen=True, kw_only=True)
class DDPConfig:
    """Every process holds everything; gradients are averaged (PyTorch's DistributedDataParallel).

    Attributes:
        context_parallel: how many neighbouring processes share each window, if it is too long for one device;
            must divide the number of processes and of a window's tokens, and best also that of the mixers' heads.
        devices: processes per node, one device each; null takes what the launcher started, else every GPU here (or one
            process on the CPU).
        nodes: machines; null takes what the launcher started. More than one needs a launcher.
    """

    kind: Literal["ddp"] = "ddp"
    context_parallel: int = 1
    devices: int | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self)


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """DeepSpeed's ZeRO: every process keeps a share of the optimizer states, gradients and weights.

    The weights stay in float32, as with `ddp`; with `training.precision` bf16-mixed the products run in bfloat16.

    Attributes:
        stage: what is divided among the processes: 1 the optimizer states, 2 also the gradients, 3 also the weights.
        offload_optimizer: keep the optimizer states in main memory and let the CPU take the optimizer step: slower, for
            models that do not fit otherwise.
        config: keys of DeepSpeed's own configuration, which override those of `dla_train.distributed.deepspeed_config`;
            keys that the recipe decides elsewhere are refused.
        context_parallel: how many neighbouring processes share each window, if it is too long for one device;
            must divide the number of processes and of a window's tokens, and best also that of the mixers' heads.
        devices: processes per node, one device each; null takes what the launcher started, else every GPU here (or one
            process on the CPU).
        nodes: machines; null takes what the launcher started. More than one needs a launcher.
    """

    kind: Literal["deepspeed"] = "deepspeed"
    stage: int = 2
    offload_optimizer: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    context_parallel: int = 1
    devices: int | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage is {self.stage}; it must be 1, 2 or 3")
        require_free_keys(self.config)


@dataclass(frozen=True, kw_only=True)
class FSDPConfig:
    """PyTorch's fully sharded data parallelism (`fully_shard`): every process keeps a share of each weight, of its
    gradient and of its optimizer states, and gathers the weights of a block while that block runs.

    With several replicas (hybrid sharding), consecutive processes form groups of equal size, and each group keeps the
    whole model: weights are gathered and gradients added up within a group, in every micro-batch, and the gradients are
    averaged over the groups once per step.

    Attributes:
        replicas: how many groups keep the model; must divide the number of processes. 1 shards it among all of them;
            `nodes` keeps a replica on each node, however many nodes there are.
        reshard_after_forward: free the gathered weights of a block after its forward, and gather them again in the
            backward; false keeps them until then, for more memory and less traffic.
        context_parallel: how many neighbouring processes share each window, if it is too long for one device;
            must divide the number of processes and of a window's tokens, and best also that of the mixers' heads.
        devices: processes per node, one device each; null takes what the launcher started, else every GPU here (or one
            process on the CPU).
        nodes: machines; null takes what the launcher started. More than one needs a launcher.
    """

    kind: Literal["fsdp"] = "fsdp"
    replicas: int | Literal["nodes"] = 1
    reshard_after_forward: bool = True
    context_parallel: int = 1
    devices: int | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.replicas != "nodes" and self.replicas < 1:
            raise ValueError(f"replicas is {self.replicas}; it must be at least 1, or nodes (one replica per node)")

    def replicas_on(self, nodes: int) -> int:
        """The number of replicas on so many machines."""
        return nodes if self.replicas == "nodes" else self.replicas


StrategyConfig = SingleStrategy | DDPConfig | DeepSpeedConfig | FSDPConfig
"""What the recipe's `strategy` may be; to add a kind, append it with `|`."""


def check_sizes(config: DDPConfig | DeepSpeedConfig | FSDPConfig) -> None:
    """Refuse impossible numbers of processes.

    Raises:
        ValueError: names the field.
    """
    for name in ("devices", "nodes"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1, or null")
    if config.context_parallel < 1:
        raise ValueError(
            f"context_parallel is {config.context_parallel}; it must be at least 1 (windows are not shared)"
        )
