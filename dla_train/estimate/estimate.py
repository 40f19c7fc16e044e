"""Puts together all figures of a recipe on a number of devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dla_train.config.load import LoadedRecipe
from dla_train.config.recipe import Recipe
from dla_train.estimate.activations import Path, Setting, capacity_of, state_shape
from dla_train.estimate.bounds import bound_by
from dla_train.estimate.devices import SAFE_SHARE, Device, devices_for
from dla_train.estimate.exchange import sent_bytes
from dla_train.estimate.flops import model_work
from dla_train.estimate.footprint import Footprint, footprint
from dla_train.estimate.longest import longest_windows
from dla_train.estimate.parts import parameter_parts
from dla_train.estimate.work import Work
from dla_train.models import LanguageModel
from dla_train.models.config import ModelConfig
from dla_train.models.mixer_config import AttentionConfig, MixerConfig


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `dla-train estimate` prints.

    Attributes:
        name: of the recipe. device, devices: which, and how many. utilization: the assumed share of the device's peak.
        parameters: number by part. work: FLOPs per token by part. bounds: what limits each part. footprint: bytes.
        sent: bytes that a device sends in a step to those it shares windows with.
        path: of the op. longest: tokens of the longest window that fits alone, by `training.activation_checkpointing`.
    """

    name: str
    recipe: Recipe
    device: Device
    devices: int
    utilization: float
    parameters: dict[str, int]
    work: dict[str, Work]
    bounds: dict[str, str]
    footprint: Footprint
    sent: int
    path: Path
    longest: dict[str, int]

    @property
    def flops_per_token(self) -> float:
        """FLOPs of forward and backward."""
        return sum(one.training for one in self.work.values())

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, over all devices."""
        return self.recipe.training.global_batch * self.recipe.data.window

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.recipe.training.steps * self.tokens_per_step

    @property
    def optimizer_seconds(self) -> float:
        """Seconds of one optimizer step: reading and writing weights and states, reading gradients; 0 if the CPU does
        it."""
        return self.footprint.stepped / self.device.bandwidth

    @property
    def step_seconds(self) -> float:
        """Seconds of a step at the assumed share of the peak, plus the optimizer's memory traffic; exchange between
        devices is not counted."""
        rate = self.devices * self.utilization * self.device.peak(self.recipe.training.precision)
        return self.flops_per_token * self.tokens_per_step / rate + self.optimizer_seconds

    @property
    def tokens_per_second(self) -> float:
        """Speed over all devices."""
        return self.tokens_per_step / self.step_seconds


def estimate(loaded: LoadedRecipe, device: Device, devices: int | None, utilization: float) -> Estimate:
    """Compute the estimate, on the meta device.

    Args:
        loaded: the recipe. device: on which. devices: on how many; None takes the number of the recipe's strategy.
        utilization: assumed share of the device's peak.
    Raises:
        UsageError: a step's windows cannot be divided evenly among the devices; names numbers that would work.
    """
    recipe = loaded.recipe
    devices = devices_for(loaded, devices)
    with torch.device("meta"):
        model = LanguageModel(recipe.model)
    path = _path(recipe.model)
    setting = Setting(
        batch=recipe.training.micro_batch,
        window=recipe.data.window,
        precision=recipe.training.precision,
        path=path,
        is_gpu=True,
        shared=recipe.strategy.context_parallel,
        recompute_every=recipe.training.recompute_every,
        selective=recipe.training.recompute_selectively,
    )
    work = model_work(recipe.model, recipe.data.window)
    sizes = footprint(recipe, model, devices, setting)
    return Estimate(
        name=loaded.name,
        recipe=recipe,
        device=device,
        devices=devices,
        utilization=utilization,
        parameters=parameter_parts(model),
        work=work,
        bounds=bound_by(recipe.model, work, setting, device),
        footprint=sizes,
        sent=sent_bytes(recipe, devices, setting),
        path=path,
        longest=longest_windows(recipe, setting, sizes.fixed, round(SAFE_SHARE * device.memory)),
    )


def _path(config: ModelConfig) -> Path:
    """The path of the op that `auto` takes on a GPU: the kernels, unless sizes exceed their limits."""
    return "triton" if all(_fits_kernels(mixer) for mixer in set(config.mixers)) else "torch"


def _fits_kernels(mixer: MixerConfig) -> bool:
    if isinstance(mixer, AttentionConfig):
        return True
    key_dim, value_dim = state_shape(mixer)
    return capacity_of(mixer) <= 64 and key_dim <= 256 and value_dim <= 512
