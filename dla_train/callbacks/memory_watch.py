"""How the memories behave: boundary rate, slots in use and tokens per slot, by layer.

An extreme rate makes the method degenerate without any sign of it (every token its own slot, or one slot for
everything), so it is measured from the first step on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dla_kernels import Plan
from dla_train.callbacks.memory_seen import MemorySeen, count, of_all_heads, unpack
from dla_train.models import LanguageModel
from dla_train.models.context import Heads
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
        self._watched: dict[int, _Watched] = {}
        self._marked: dict[int, Tensor | None] = {}
        self._hooks = []
        for index, block in enumerate(model.blocks):
            for memory in (module for module in block.modules() if isinstance(module, Memory) and module.capacity > 1):
                self._watched[index] = _Watched(self, memory)
                self._hooks.append(memory.register_forward_hook(self._watched[index].look, with_kwargs=True))
        self.layers = list(self._watched)

    @property
    def columns(self) -> list[str]:
        """Names of what `means` returns: `boundary_rate.0`, `slots_in_use.0`, ..."""
        return [f"{name}.{layer}" for name in (BOUNDARY_RATE, SLOTS_IN_USE) for layer in self.layers]

    def collect(self, strategy: Strategy | None = None) -> dict[int, MemorySeen]:
        """By layer, the counts over everything since the last call.

        Args:
            strategy: adds up what all ranks have seen, and all must call this; None: what this process has seen.
        """
        found = {
            layer: of_all_heads(one.counts, one.memory.capacity, one.memory.context, one.memory.slot_weight.heads)
            for layer, one in self._watched.items()
            if one.counts is not None
        }
        if not found:
            return {}
        sizes = [len(counts) for counts in found.values()]
        total = torch.cat(list(found.values()))
        for one in self._watched.values():
            one.counts = None
        if strategy is not None:
            reduced = strategy.reduce(total.to(strategy.root_device), reduce_op="sum")
            assert isinstance(reduced, Tensor)
            total = reduced
        parts = total.cpu().split(sizes)
        return {
            layer: unpack(part, self._watched[layer].memory.capacity) for layer, part in zip(found, parts, strict=True)
        }

    def mark(self) -> None:
        """Note what was seen so far, for `go_back`."""
        self._marked = {layer: one.counts for layer, one in self._watched.items()}

    def go_back(self) -> None:
        """Discard what was seen since `mark`. A layer of which nothing is left counts as seen, with counts of zero, so
        that `collect` adds up the same layers on all ranks."""
        for layer, one in self._watched.items():
            before = self._marked[layer]
            one.counts = torch.zeros_like(one.counts) if before is None and one.counts is not None else before

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


class _Watched:
    """One memory. It is an object of its own, which does not know its layer: the hook is compiled with the block, and
    with a number in it no two blocks could share a graph.

    Attributes:
        counts: of all plans since they were last collected; None if there were none.
    """

    def __init__(self, watch: MemoryWatch, memory: Memory) -> None:
        self.watch = watch
        self.memory = memory
        self.counts: Tensor | None = None

    @torch.no_grad()
    def look(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], plan: Plan) -> None:
        """The hook."""
        if not self.watch.is_active:
            return
        memory = self.memory
        seen = count(plan, named.get("cu_seqlens"), memory.context.real(Heads(memory.slot_weight.heads, 1)))
        self.counts = seen if self.counts is None else self.counts + seen


def means(seen: dict[int, MemorySeen]) -> dict[str, float]:
    """Of each layer, the share of tokens that open a slot, and the mean number of slots after each token."""
    return {
        **{f"{BOUNDARY_RATE}.{layer}": one.boundary_rate for layer, one in seen.items()},
        **{f"{SLOTS_IN_USE}.{layer}": one.slots_in_use for layer, one in seen.items()},
    }
