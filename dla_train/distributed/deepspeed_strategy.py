"""Lightning's DeepSpeed strategy, extended to the CPU, with our own clipping, skipping and checkpoints.

It overrides private methods of Lightning and DeepSpeed, whose versions are therefore bounded in pyproject.toml; the
tests run the real engine through each of these methods.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import deepspeed
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision.deepspeed import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from dla_train.distributed.sharded_state import Part, ShardedState
from dla_train.distributed.zero_parts import parts_of_zero_1_and_2, parts_of_zero_3, rebuild_weights
from dla_train.training.module import LanguageModelTraining

_SHM_OP = "deepspeed_shm_comm"
_BESIDE_THE_POINT = (
    "A module has unknown inputs or outputs type",  # a memory's plan: no tensor, and no gradient depends on it
    "OVERFLOW! Skipping step",  # the training module has already logged what is skipped and why
)


class ZeroPrecision(DeepSpeedPrecision):
    """float32 weights, with products in float32 or bfloat16; the training module decides whether to accept gradients.

    Args:
        precision: `32-true` or `bf16-mixed`. device_type: `cpu` or `cuda`.
    """

    def __init__(self, precision: Any, device_type: str) -> None:
        super().__init__(precision)
        self.device_type = device_type

    def convert_input(self, data: Any) -> Any:
        """Return the data unchanged: tokens must not be converted."""
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast for calls that bypass the engine, which sets the same itself."""
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device_type, dtype=torch.bfloat16)
        return nullcontext()

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Run the engine's backward without scaling: Lightning has divided the loss by the number of micro-batches
        already."""
        model.trainer.model.backward(tensor, scale_wrt_gas=False)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Run forward and backward; the engine takes the optimizer step only after a step's last micro-batch."""
        closure()
        return model.trainer.model.step()


class ZeroStrategy(ShardedState, DeepSpeedStrategy):
    """DeepSpeed with ZeRO 1, 2 or 3.

    Args:
        config: DeepSpeed's configuration, complete. precision: of the recipe. device_type: `cpu` or `cuda`.
    """

    def __init__(self, config: dict[str, Any], precision: str, device_type: str) -> None:
        super().__init__(
            config=config,
            precision_plugin=ZeroPrecision(precision, device_type),
            logging_level=logging.WARNING,
        )
        logger = logging.getLogger("DeepSpeed")  # its messages go where all others go
        logger.handlers, logger.propagate = [], True
        logger.addFilter(lambda record: not any(text in record.getMessage() for text in _BESIDE_THE_POINT))
        self._names: dict[int, str] = {}
        self._groups: list[dict[str, Any]] = []

    @property
    def _is_on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def _zero(self) -> DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3:
        return self.optimizers[0]  # type: ignore[return-value]

    def setup_environment(self) -> None:
        """As in Lightning, but on the CPU without its check for a GPU."""
        if self._is_on_cpu:
            DDPStrategy.setup_environment(self)  # type: ignore[arg-type]
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """As in Lightning, but on the CPU without its check of device numbers, and without compiling an op that
        training does not use."""
        if self._is_on_cpu:
            deepspeed.ops.__compatible_ops__[_SHM_OP] = False
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()

    def init_deepspeed(self) -> None:
        """As in Lightning, but without its warning about clipping, which works here."""
        self._initialize_deepspeed_train(self.model)  # type: ignore[arg-type]

    def _format_config(self) -> None:
        """Leave the configuration as it is: it is complete already."""

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        named = dict(model.named_parameters())
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._groups = [
            {**group, "params": [self._names[id(parameter)] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]
        if "offload_optimizer" in cast(dict[str, Any], self.config)["zero_optimization"]:
            for group in optimizer.param_groups:
                group["fused"] = True  # on the CPU: one pass over the states instead of ten
        engine, zero, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=list(named.values()),  # pyright: ignore[reportArgumentType]
            optimizer=optimizer,
            dist_init_required=False,
        )
        _judge_gradients(zero, cast(LanguageModelTraining, model))
        return engine, zero

    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that DeepSpeed wraps."""
        return self._zero.optimizer

    def groups(self) -> list[dict[str, Any]]:
        """See `ShardedState`; with the current learning rates."""
        now = self.torch_optimizer().param_groups
        return [{**group, "lr": current["lr"]} for group, current in zip(self._groups, now, strict=True)]

    def parts(self) -> list[Part]:
        """See `ShardedState`."""
        if isinstance(self._zero, DeepSpeedZeroOptimizer_Stage3):
            return parts_of_zero_3(self._zero, self._names)
        return parts_of_zero_1_and_2(self._zero, self._names)

    def weights_changed(self) -> None:
        """See `ShardedState`."""
        rebuild_weights(self._zero)


def _judge_gradients(zero: Any, module: LanguageModelTraining) -> None:
    """Let `module` see the norm of each step's gradient, and skip the steps that it refuses.

    DeepSpeed computes the norm when it takes the step, clips by it, and discards the step if the norm is negative,
    which is its marker of a gradient that is not finite. Returning that marker makes it discard a step for any other
    reason.
    """
    discard = torch.tensor(-1.0)

    def judged(norm: Tensor) -> Tensor:
        size = float(norm)
        return norm if module.accepts(size if size >= 0 and math.isfinite(size) else math.nan) else discard.to(norm)

    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        norms_of_groups = zero._get_norm_groups
        zero._get_norm_groups = lambda: [judged(_combined(norms_of_groups()))]
    else:
        norm_of_all = zero.scaled_global_norm
        zero.scaled_global_norm = lambda norm_type=2: judged(norm_of_all(norm_type))


def _combined(norms: list[Tensor]) -> Tensor:
    """The norm of all groups, infinite if that of one is not finite; DeepSpeed says -1 then."""
    groups = torch.stack(norms)
    are_finite = (torch.isfinite(groups) & (groups >= 0)).all()
    return torch.where(are_finite, torch.linalg.vector_norm(groups), math.inf)
