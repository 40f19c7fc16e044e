"""Runs a model over a text and records what its memories did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dla_kernels import Plan
from dla_train.errors import UsageError
from dla_train.models import LanguageModel
from dla_train.models.memory import Dynamic, Memory


@dataclass(frozen=True)
class Layer:
    """What one layer did with T tokens.

    Attributes:
        index: number of its block, counted from 0; blocks that divide no text have none of this.
        plan: of one sequence. ends: where its documents end, which are kept apart; the last one at T.
        weights: `[H, M]`, mean weight of a slot by its age, over the tokens after which such a slot existed; nan where
            none did.
        threshold: `[H]`; None if boundaries do not depend on the content.
    """

    index: int
    plan: Plan
    ends: Sequence[int]
    weights: Tensor
    threshold: Tensor | None

    @property
    def rates(self) -> Tensor:
        """Share of tokens that open a slot, `[H]`, without the first token of each document, which always opens one."""
        documents = len(self.ends)
        opened = self.plan.boundary[0].sum(0).cpu().double() - documents
        return opened / max(1, self.ends[-1] - documents)

    @property
    def slots_in_use(self) -> Tensor:
        """How many slots exist after each token, `[T, H]`."""
        return _slots_in_use(self.plan, self.ends)


def observe(model: LanguageModel, tokens: list[int], ends: Sequence[int] = ()) -> list[Layer]:
    """What every layer with slots did with `tokens`, of which there must be at least two.

    Args:
        model: the model that reads. tokens: what it reads. ends: where documents end that must be kept apart; the last
            must be `len(tokens)`. If empty, all is one document.
    Raises:
        UsageError: no memory of this model has more than one slot.
    """
    ends = ends or [len(tokens)]
    memories = {
        index: module
        for index, block in enumerate(model.blocks)
        for module in block.modules()
        if isinstance(module, Memory) and module.capacity > 1
    }
    if not memories:
        raise UsageError(
            "this model divides no text: it has one state, or softmax attention, which keeps every token. Give a run "
            "with the memory dynamic, of which all can be shown, or fixed or fenwick: their slots and weights."
        )
    plans: dict[int, Plan] = {}
    weights: dict[int, Tensor] = {}
    hooks = []
    for index, memory in memories.items():

        def keep_plan(module: Any, given: Any, plan: Plan, index: int = index) -> None:
            plans[index] = plan

        def keep_weights(module: Any, given: Any, weight: Tensor, index: int = index) -> None:
            weights[index] = weight

        hooks += [memory.register_forward_hook(keep_plan), memory.slot_weight.register_forward_hook(keep_weights)]
    try:
        device = model.embedding.weight.device
        cu_seqlens = torch.tensor([0, *ends], dtype=torch.int32, device=device) if len(ends) > 1 else None
        with torch.no_grad():
            model.hidden_states(torch.tensor([tokens], device=device), cu_seqlens=cu_seqlens)
    finally:
        for hook in hooks:
            hook.remove()
    return [_layer(index, memory, plans[index], ends, weights[index]) for index, memory in memories.items()]


def _layer(index: int, memory: Memory, plan: Plan, ends: Sequence[int], weight: Tensor) -> Layer:
    exists = _existing(plan, ends).to(weight.device)
    means = weight[0].double().masked_fill(~exists, 0).sum(0) / exists.sum(0)
    threshold = memory.threshold.detach() if isinstance(memory, Dynamic) else None
    return Layer(index, plan, ends, means.cpu(), threshold)


def _existing(plan: Plan, ends: Sequence[int]) -> Tensor:
    """Whether there is a slot of each age after each token, `[T, H, M]` bool; levels of a Fenwick plan may be empty."""
    if not plan.collapse:
        return torch.arange(plan.capacity, device=plan.shift.device) < _slots_in_use(plan, ends)[..., None]
    age, levels = torch.arange(plan.capacity), plan.shift[0].cpu()  # some launches for every token otherwise
    starts, found = {0, *ends}, []
    exists = torch.zeros(plan.shift.shape[2], plan.capacity, dtype=torch.bool)  # [H, M]
    for now, level in enumerate(levels[..., None]):  # [H, 1]
        exists = exists & (now not in starts)
        collapsed = (exists & (age <= level)).any(-1, keepdim=True)
        exists = (exists & (age > level)) | (collapsed & (age == level + 1)) | (age == 0)
        found.append(exists)
    return torch.stack(found)


def _slots_in_use(plan: Plan, ends: Sequence[int]) -> Tensor:
    return plan.slots_in_use(torch.tensor([0, *ends], device=plan.shift.device))[0]
