"""Each device's share of weights, gradients and optimizer states, by the recipe's strategy."""

from __future__ import annotations

from dataclasses import dataclass

from dla_train.config.recipe import Recipe
from dla_train.distributed.config import DeepSpeedConfig, FSDPConfig
from dla_train.distributed.deepspeed_config import deepspeed_config
from dla_train.estimate.replicas import replicas_of
from dla_train.models import LanguageModel

_WIDE = 4  # bytes of a float32, which DeepSpeed exchanges


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Bytes on each device, unless said otherwise.

    Attributes:
        parameters: kept all the time. gathered: from other devices' shares, at the peak.
        gradients: kept between micro-batches. buckets: for their exchange.
        optimizer: states, and the copies of weights that the optimizer steps, if any.
        in_main_memory: offloaded to the machine's main memory, per device.
        step_shares: number of devices that share the work of an optimizer step.
    """

    parameters: int
    gathered: int = 0
    gradients: int
    buckets: int
    optimizer: int
    in_main_memory: int = 0
    step_shares: int = 1


def shares(recipe: Recipe, model: LanguageModel, devices: int, parameters: int, optimizer: int) -> Shares:
    """Divide the model and its optimizer states among devices.

    Args:
        model: of the recipe, on the meta device. devices: number of devices that train together.
        parameters, optimizer: bytes of the whole model's weights and states.
    """
    if isinstance(recipe.strategy, DeepSpeedConfig):
        return _of_zero(recipe, recipe.strategy, devices, parameters, optimizer)
    if isinstance(recipe.strategy, FSDPConfig):
        return _of_fsdp(recipe.strategy, model, devices, parameters, optimizer)
    training = recipe.training
    readers = devices // recipe.strategy.context_parallel
    gathers = devices > 1 and training.global_batch > training.micro_batch * readers
    return Shares(
        parameters=parameters, gradients=parameters, buckets=parameters if gathers else 0, optimizer=optimizer
    )


def _of_zero(recipe: Recipe, strategy: DeepSpeedConfig, devices: int, parameters: int, optimizer: int) -> Shares:
    """The shares with DeepSpeed, which at every stage steps copies of its share of the weights."""
    zero = deepspeed_config(strategy, recipe.training, accumulate=1)["zero_optimization"]
    share = parameters // devices
    stepped = share + optimizer // devices
    bucket = _WIDE * zero["reduce_bucket_size"]
    live = 0
    if strategy.stage == 3:
        live = _WIDE * (zero["stage3_max_live_parameters"] + zero["stage3_prefetch_bucket_size"])
    return Shares(
        parameters=share if strategy.stage == 3 else parameters,
        gathered=min(live, parameters - share),
        # Stage 1 accumulates the whole gradient over a step's micro-batches before it distributes the shares.
        gradients=share + (parameters if strategy.stage == 1 else 0),
        buckets=bucket * (2 if strategy.stage < 3 and zero["overlap_comm"] else 1),
        optimizer=0 if strategy.offload_optimizer else stepped,
        in_main_memory=stepped + share if strategy.offload_optimizer else 0,
        step_shares=devices,
    )


def _of_fsdp(strategy: FSDPConfig, model: LanguageModel, devices: int, parameters: int, optimizer: int) -> Shares:
    """The shares with FSDP, of the devices that keep a replica together: the running block and the next one are
    gathered, and embedding, last norm and head from their forward on."""
    blocks = [sum(one.numel() * one.element_size() for one in block.parameters()) for block in model.blocks]
    block, others = max(blocks), parameters - sum(blocks)
    whole = others + (min(2 * block, sum(blocks)) if strategy.reshard_after_forward else sum(blocks))
    shards = devices // replicas_of(strategy, devices)
    share = parameters // shards
    return Shares(
        parameters=share,
        gathered=whole if devices > 1 else 0,
        gradients=share,
        buckets=others + 2 * block if devices > 1 else 0,
        optimizer=optimizer // shards,
        step_shares=shards,
    )
