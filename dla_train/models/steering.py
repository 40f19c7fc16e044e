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
        self._steered = [_Steered(self, module) for module in model.modules() if isinstance(module, Dynamic)]
        self._hooks = [one.memory.register_forward_hook(one.look) for one in self._steered]

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """Discard what was collected since the last `move`."""
        for one in self._steered:
            one.wanted = None

    @torch.no_grad()
    def move(self, mean: Callable[[Tensor], Tensor] = lambda wanted: wanted) -> None:
        """Move every threshold towards the mean of the quantiles of all batches since the last call.

        Args:
            mean: averages a tensor over all ranks, which have different batches; thresholds then stay equal on all.
        """
        found = [one.mean_over_batches() for one in self._steered if one.wanted is not None]
        if not found:
            return
        self.forget()
        wanted = mean(torch.cat(found)).split([len(tau) for tau in found])
        for one, tau in zip(self._steered, wanted, strict=True):
            one.memory.threshold.lerp_(tau.to(one.memory.threshold), self.part)


class _Steered:
    """One memory. It is an object of its own, which does not know its layer: the hook is compiled with the block, and
    with a number in it no two blocks could share a graph.

    Attributes:
        wanted: `[H + 1]` (H of this rank's heads), the sum over batches of what `wanted_threshold` gives, and their
            number; None without any.
    """

    def __init__(self, steering: ThresholdSteering, memory: Dynamic) -> None:
        self.steering = steering
        self.memory = memory
        self.wanted: Tensor | None = None

    def mean_over_batches(self) -> Tensor:
        """Of what was wanted, `[H]`. Where ranks share windows, the mean over them gives that of all heads."""
        assert self.wanted is not None
        context = self.memory.context
        own = self.wanted[:-1] / self.wanted[-1]
        return context.placed(own, len(self.memory.threshold)) * context.size

    @torch.no_grad()
    def look(self, module: nn.Module, inputs: tuple[Any, ...], plan: Plan) -> None:
        """The hook."""
        if not self.steering.is_active:
            return
        tau = wanted_threshold(plan, self.steering.rate)
        one = torch.cat((tau, tau.new_ones(1)))
        self.wanted = one if self.wanted is None else self.wanted + one


def wanted_threshold(plan: Plan, rate: float) -> Tensor:
    """`[H]` float32: the value that the scores of a share `rate` of the tokens exceed, at most 2.

    First tokens of documents open a slot whatever tau is, so they count as above it.
    """
    opens_anyway = plan.boundary & (plan.score == 0)
    scores = torch.where(opens_anyway, torch.inf, plan.score).flatten(0, 1).t().contiguous()  # [H, B T]
    tokens = scores.shape[1]
    above = max(1, round(rate * tokens))
    return scores.kthvalue(tokens - above + 1).values.clamp(max=2.0)
