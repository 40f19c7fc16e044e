"""The Lightning Trainer, with those of its defaults switched off that would interfere."""

from pathlib import Path

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from dla_train.checkpoints.state_file import StateFileIO
from dla_train.distributed.config import SingleStrategy, StrategyConfig
from dla_train.distributed.placement import Placement
from dla_train.distributed.strategies import JoinedProcesses, build_strategy
from dla_train.training.config import TrainingConfig

_SINGLE = SingleStrategy()


def build_trainer(
    config: TrainingConfig,
    *,
    strategy: StrategyConfig = _SINGLE,
    placement: Placement | None = None,
    callbacks: list[Callback],
    logger: Logger | None,
    folder: Path,
) -> lightning.Trainer:
    """A trainer for `config.steps` optimizer steps.

    Args:
        config, strategy: the recipe's sections. placement: of this process among several.
        callbacks: in the order in which they are to be called. logger: besides `metrics.csv`.
        folder: of the run.
    """
    readers = placement.world_size // strategy.context_parallel if placement else 1
    accumulate = config.global_batch // (config.micro_batch * readers)
    nodes = placement.nodes if placement else 1
    return lightning.Trainer(
        # Lightning's own "auto" would take a GPU of Apple, which neither float64 nor the op works on.
        accelerator="cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu",
        strategy=build_strategy(strategy, config, accumulate, nodes),
        devices=placement.devices if placement else 1,
        num_nodes=nodes,
        # DeepSpeed sets the precision itself.
        precision=None if strategy.kind == "deepspeed" else config.precision,
        max_steps=config.steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        # Counted in micro-batches over the whole run; `Ending` sees to the last validation.
        val_check_interval=(config.validate_every or config.steps + 1) * accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if config.validates else 0,
        num_sanity_val_steps=0,
        # Lightning's own sampler would shuffle, and shard again what `StepBatches` has already sharded.
        use_distributed_sampler=False,
        # Our own callbacks do each of these.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=None,
        logger=logger or False,
        log_every_n_steps=1,
        callbacks=callbacks,
        plugins=[StateFileIO(), *([JoinedProcesses(placement)] if placement else _cluster())],
        default_root_dir=folder,
    )


def _cluster() -> list[SLURMEnvironment]:
    """Inside a Slurm job, keeps Lightning from handling the job's signals. It would save wherever the signal arrives,
    which deadlocks if ranks are not at the same place; `StopSignal` and the batch script do this instead."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
