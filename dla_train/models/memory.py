"""How a linear mixer divides its past into slots.

Each memory makes the plan that the op reads, and owns the slot weights. A forward hook on a memory sees every plan:
boundary rates and slot use are logged that way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from dla_kernels import (
    Cache,
    Plan,
    dynamic_linear_attention,
    fenwick_plan,
    fixed_plan,
    multi_state_attention,
    segment,
    single_plan,
)
from dla_train.models.context import InContext
from dla_train.models.memory_config import (
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GateKind,
    MemoryConfig,
    SingleMemory,
)
from dla_train.models.slot_weight import SlotWeight, UnitSlotWeight


class Memory(InContext):
    """A way to make plans, with the weights of its slots.

    Attributes:
        capacity: M, the largest number of slots.
        slot_weight: the layer's input `[B, T, hidden]` -> `[B, T, H, M]`.
    """

    capacity: int
    slot_weight: SlotWeight | UnitSlotWeight

    def forward(self, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Plan:
        """The plan for `k` `[B, T, G, K]` and `v` `[B, T, H, V]`, which go on from `cache` if one is given."""
        raise NotImplementedError

    def read(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        log_decay: Tensor,
        beta: Tensor | None = None,
        scale: float | None = None,
        cu_seqlens: Tensor | None = None,
        cache: Cache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """Reads the slots with weights from the layer's input `x` `[B, T, hidden]`; the rest is as in
        `multi_state_attention`."""
        # By name: ZeRO 3 makes new tensors of those that a module gets by place, and where documents begin is known of
        # the old one.
        plan = self(k, v, cu_seqlens=cu_seqlens, cache=cache)
        slot_weight = self.slot_weight(x)
        return multi_state_attention(
            q, k, v, slot_weight, plan, log_decay=log_decay, beta=beta, scale=scale, cu_seqlens=cu_seqlens, cache=cache,
            return_cache=return_cache,
        )  # fmt: skip


class Single(Memory):
    """One state: the backbone as published. Has no parameters.

    Args:
        heads: H.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.capacity = 1
        self.slot_weight = UnitSlotWeight(heads)

    def forward(self, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Plan:
        """See `Memory.forward`."""
        return single_plan(*v.shape[:3], device=v.device)


class Fixed(Memory):
    """Blocks of a fixed length.

    Args:
        config: block length and capacity. hidden: width of the layer's input. heads: H.
    """

    def __init__(self, config: FixedMemory, hidden: int, heads: int) -> None:
        super().__init__()
        self.capacity = config.capacity
        self.block = config.block
        self.slot_weight = SlotWeight(hidden, heads, config.capacity)

    def forward(self, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Plan:
        """See `Memory.forward`."""
        start = 0 if cache is None else cache.tokens
        return fixed_plan(
            *v.shape[:3], block=self.block, capacity=self.capacity, cu_seqlens=cu_seqlens, start=start, device=v.device
        )


class Fenwick(Memory):
    """The levels of Log-Linear attention.

    Args:
        config: capacity. hidden: width of the layer's input. heads: H.
    """

    def __init__(self, config: FenwickMemory, hidden: int, heads: int) -> None:
        super().__init__()
        self.capacity = config.capacity
        self.slot_weight = SlotWeight(hidden, heads, config.capacity)

    def forward(self, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Plan:
        """See `Memory.forward`."""
        start = 0 if cache is None else cache.tokens
        return fenwick_plan(*v.shape[:3], capacity=self.capacity, cu_seqlens=cu_seqlens, start=start, device=v.device)


class Dynamic(Memory):
    """Dynamic Linear Attention: a slot begins where a token's score reaches the threshold (eq. 14).

    `threshold` `[H]` is a parameter if it is learned, otherwise a buffer. Both are saved with the model, so that
    calibrated thresholds survive. The buffer stays float32 even in a model with 16-bit weights: scores lie closer
    together than bfloat16 numbers, so calibration and steering would miss their rates.

    Args:
        config: capacity, threshold and gate. hidden: width of the layer's input. heads: H.
    """

    threshold: Tensor
    gate: GateKind

    def __init__(self, config: DynamicMemory, hidden: int, heads: int) -> None:
        super().__init__()
        self.capacity = config.capacity
        self.gate = config.gate
        self.gate_width = config.gate_width
        self.initial_threshold = float(config.threshold)
        self.slot_weight = SlotWeight(hidden, heads, config.capacity)
        if config.learn_threshold:
            self.threshold = nn.Parameter(torch.empty(heads))
        else:
            self.register_buffer("threshold", torch.full((heads,), self.initial_threshold, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts the module, but keeps the threshold buffer in float32."""
        before = self.threshold
        super()._apply(fn, recurse)
        if not isinstance(before, nn.Parameter) and self.threshold.dtype in (torch.bfloat16, torch.float16):
            self.threshold = before.to(self.threshold.device)
        return self

    def forward(self, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Plan:
        """See `Memory.forward`."""
        # A copy: on the CPU the op shares its memory with numpy for good, and FSDP frees parameters between layers.
        threshold = self.threshold.clone() if isinstance(self.threshold, nn.Parameter) else self.threshold
        return segment(
            k,
            v,
            capacity=self.capacity,
            threshold=self.context.own(threshold),
            cu_seqlens=cu_seqlens,
            cache=cache,
            gate=self.gate if torch.is_grad_enabled() else "hard",
            gate_width=self.gate_width,
        )

    def read(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        log_decay: Tensor,
        beta: Tensor | None = None,
        scale: float | None = None,
        cu_seqlens: Tensor | None = None,
        cache: Cache | None = None,
        return_cache: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """See `Memory.read`. A token that continues a cache takes one call of the op: on a GPU, a single launch for
        plan, write and read.

        The general path is taken if gradients are needed, or if a hook looks at plans or at their inputs.
        """
        watched = self._forward_hooks or self._forward_pre_hooks
        if cache is None or k.shape[1] > 1 or torch.is_grad_enabled() or watched:
            return super().read(
                x, q, k, v, log_decay=log_decay, beta=beta, scale=scale, cu_seqlens=cu_seqlens, cache=cache,
                return_cache=return_cache,
            )  # fmt: skip
        return dynamic_linear_attention(
            q, k, v, self.slot_weight(x), capacity=self.capacity, threshold=self.threshold, log_decay=log_decay,
            beta=beta, scale=scale, cu_seqlens=cu_seqlens, cache=cache, return_cache=return_cache,
        )  # fmt: skip


def make_memory(config: MemoryConfig, *, hidden: int, heads: int) -> Memory:
    """The memory that `config` describes, for a layer of `heads` heads on inputs of width `hidden`."""
    match config:
        case SingleMemory():
            return Single(heads)
        case FixedMemory():
            return Fixed(config, hidden, heads)
        case FenwickMemory():
            return Fenwick(config, hidden, heads)
        case DynamicMemory():
            return Dynamic(config, hidden, heads)
