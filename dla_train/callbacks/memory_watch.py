"""How the memories behave: boundary rate and slots in use, per layer.

An extreme rate makes the method degenerate without a sound (every token its own slot, or one slot for everything), so
it is measured from the first step on.
"""

from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from dla_kernels import Plan
from dla_train.models import LanguageModel
from dla_train.models.memory import Memory

BOUNDARY_RATE, SLOTS_IN_USE = "boundary_rate", "slots_in_use"


class MemoryWatch:
    """Sees every plan through forward hooks on the mixers' memories, and keeps running sums.

    Memories with one slot are left out: they have nothing to tell.

    Args:
        model: is watched until `close`.
    Attributes:
        is_active: whether plans are looked at now; otherwise a hook costs nothing.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.is_active = False
        self._sums: dict[int, list[Tensor]] = {}
        self._hooks = []
        self.layers: list[int] = []
        for index, block in enumerate(model.blocks):
            for memory in (module for module in block.modules() if isinstance(module, Memory) and module.capacity > 1):
                self.layers.append(index)
                self._hooks.append(memory.register_forward_hook(self._hook(index)))

    @property
    def columns(self) -> list[str]:
        """Names of what `collect` returns: `boundary_rate.0`, `slots_in_use.0`, ..."""
        return [f"{name}.{layer}" for name in (BOUNDARY_RATE, SLOTS_IN_USE) for layer in self.layers]

    def collect(self, strategy: Strategy | None = None) -> dict[str, float]:
        """Means over everything since the last call: share of tokens that open a slot, and slots after each token.

        Args:
            strategy: adds up what all ranks have seen, and all must call this; None: what this process has seen.
        """
        row: dict[str, float] = {}
        for layer, sums in sorted(self._sums.items()):
            total = torch.stack([value.to(sums[0].device) for value in sums])
            if strategy is not None:
                total = strategy.reduce(total.to(strategy.root_device), reduce_op="sum")
            rate, slots, count = total.tolist()
            row[f"{BOUNDARY_RATE}.{layer}"] = rate / count
            row[f"{SLOTS_IN_USE}.{layer}"] = slots / count
        self._sums.clear()
        return row

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, layer: int) -> Any:
        @torch.no_grad()
        def look(module: nn.Module, inputs: tuple[Any, ...], plan: Plan) -> None:
            if not self.is_active:
                return
            cu_seqlens = inputs[2] if len(inputs) > 2 else None  # see `Memory.forward`
            # Sums of whole numbers are exact in float64, so a mean does not depend on how the batch was cut up.
            seen = [
                plan.boundary.sum(dtype=torch.float64),
                plan.slots_in_use(cu_seqlens).sum(dtype=torch.float64),
                torch.tensor(plan.shift.numel(), dtype=torch.float64),
            ]
            known = self._sums.get(layer)
            self._sums[layer] = seen if known is None else [a + b for a, b in zip(known, seen, strict=True)]

        return look
