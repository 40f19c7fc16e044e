"""How the memories behave: boundary rate, slots in use and tokens per slot, by layer.

An extreme rate makes the method degenerate without any sign of it (every token its own slot, or one slot for
everything), so it is measured from the first step on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dla_kernels import Plan
from dla_train.callbacks.memory_seen import MemorySeen, count, unpack
from dla_train.models import LanguageModel
from dla_train.models.memory import Memory

if TYPE_CHECKING:  # seconds to import, and reports and estimates need but the names of columns
    from lightning.pytorch.strategies import Strategy

BOUNDARY_RATE, SLOTS_IN_USE = "boundary_rate", "slots_in_use"


class MemoryWatch:
    """Sees every plan through forward hooks on the mixers' memories, and adds up counts.

    Memories with one slot are left out, as there is nothing to measure. Integer counts are exact, so they do not depend
    on how a batch is divided among micro-batches and ranks.

    Args:
        model: is watched until `close`.
    Attributes:
        is_active: whether plans are looked at now; otherwise a hook costs nothing.
        layers: the watched ones.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.is_active = False
        self._counts: dict[int, Tensor] = {}
        self._capacities: dict[int, int] = {}
        self._hooks = []
        for index, block in enumerate(model.blocks):
            for memory in (module for module in block.modules() if isinstance(module, Memory) and module.capacity > 1):
                self._capacities[index] = memory.capacity
                self._hooks.append(memory.register_forward_hook(self._hook(index)))
        self.layers = list(self._capacities)

    @property
    def columns(self) -> list[str]:
        """Names of what `means` returns: `boundary_rate.0`, `slots_in_use.0`, ..."""
        return [f"{name}.{layer}" for name in (BOUNDARY_RATE, SLOTS_IN_USE) for layer in self.layers]

    def collect(self, strategy: Strategy | None = None) -> dict[int, MemorySeen]:
        """By layer, the counts over everything since the last call.

        Args:
            strategy: adds up what all ranks have seen, and all must call this; None: what this process has seen.
        """
        if not self._counts:
            return {}
        layers = sorted(self._counts)
        sizes = [len(self._counts[layer]) for layer in layers]
        total = torch.cat([self._counts[layer] for layer in layers])
        self._counts.clear()
        if strategy is not None:
            reduced = strategy.reduce(total.to(strategy.root_device), reduce_op="sum")
            assert isinstance(reduced, Tensor)
            total = reduced
        parts = total.cpu().split(sizes)
        return {layer: unpack(part, self._capacities[layer]) for layer, part in zip(layers, parts, strict=True)}

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, layer: int) -> Any:
        @torch.no_grad()
        def look(module: nn.Module, inputs: tuple[Any, ...], plan: Plan) -> None:
            if not self.is_active:
                return
            cu_seqlens = inputs[2] if len(inputs) > 2 else None  # see `Memory.forward`
            seen = count(plan, cu_seqlens)
            known = self._counts.get(layer)
            self._counts[layer] = seen if known is None else known + seen

        return look


def means(seen: dict[int, MemorySeen]) -> dict[str, float]:
    """Of each layer, the share of tokens that open a slot, and the mean number of slots after each token."""
    return {
        **{f"{BOUNDARY_RATE}.{layer}": one.boundary_rate for layer, one in seen.items()},
        **{f"{SLOTS_IN_USE}.{layer}": one.slots_in_use for layer, one in seen.items()},
    }
