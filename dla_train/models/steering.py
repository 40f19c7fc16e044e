"""Thresholds that follow the scores, so that a boundary rate stays where it was set while the features change.

Calibration finds tau for the features of one batch, but features change in training, and the rate drifts away within
tens of steps. Finding tau again by bisection costs a forward pass and sixteen segmentations. Following it costs almost
nothing: the scores of the step exist already, and if the rate is right, tau is a quantile of them. So each step moves
tau part of the way to that quantile. It does not move all the way because the scores depend, through the segments, on
tau itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dla_kernels import Plan
from dla_train.models.language_model import LanguageModel
from dla_train.models.memory import Dynamic


class ThresholdSteering:
    """Sees the scores of all dynamic memories through forward hooks, and moves their thresholds when told to.

    Args:
        model: watched until `close`. Its thresholds change only in `move`, because the backward pass needs them.
        rate: share of tokens that should open a slot, in (0, 1).
        part: fraction of the way to the quantile that one `move` takes, in (0, 1]. 0.1 averages over about ten steps.
    Attributes:
        is_active: whether scores are collected now; set to false while the backward pass recomputes blocks.
    """

    def __init__(self, model: LanguageModel, rate: float, part: float) -> None:
        self.rate = rate
        self.part = part
        self.is_active = False
        self._memories = [module for module in model.modules() if isinstance(module, Dynamic)]
        self._wanted: dict[int, list[Tensor]] = {}
        self._hooks = [memory.register_forward_hook(self._hook(index)) for index, memory in enumerate(self._memories)]

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """Discard what was collected since the last `move`."""
        self._wanted.clear()

    @torch.no_grad()
    def move(self, mean: Callable[[Tensor], Tensor] = lambda wanted: wanted) -> None:
        """Move every threshold towards the mean of the quantiles of all batches since the last call.

        Args:
            mean: averages a tensor over all ranks, which have different batches; thresholds then stay equal on all.
        """
        if not self._wanted:
            return
        wanted = mean(torch.cat([torch.stack(batches).mean(0) for _, batches in sorted(self._wanted.items())]))
        sizes = [len(batches[0]) for _, batches in sorted(self._wanted.items())]
        self.forget()
        for memory, tau in zip(self._memories, wanted.split(sizes), strict=True):
            memory.threshold.lerp_(tau.to(memory.threshold), self.part)

    def _hook(self, index: int) -> Any:
        @torch.no_grad()
        def look(module: nn.Module, inputs: tuple[Any, ...], plan: Plan) -> None:
            if self.is_active:
                self._wanted.setdefault(index, []).append(wanted_threshold(plan, self.rate))

        return look


def wanted_threshold(plan: Plan, rate: float) -> Tensor:
    """`[H]` float32: the value that the scores of a share `rate` of the tokens exceed, at most 2.

    First tokens of documents open a slot whatever tau is, so they count as above it.
    """
    opens_anyway = plan.boundary & (plan.score == 0)
    scores = torch.where(opens_anyway, torch.inf, plan.score).flatten(0, 1)  # [B T, H]
    above = max(1, round(rate * scores.shape[0]))
    return scores.kthvalue(scores.shape[0] - above + 1, dim=0).values.clamp(max=2.0)
