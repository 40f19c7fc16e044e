"""Measures the memory that an operator takes from shapes alone, on the meta device, where nothing is allocated or
computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class InsideOperators(TorchDispatchMode):
    """Sees what our operators do on a GPU instead of their fakes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dla":
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        made = func(*args, **(kwargs or {}))
        self.see(func.name(), args, kwargs or {}, made)
        return made

    def see(self, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """An operation of torch, and its results."""
        raise NotImplementedError


class PeakMemory(InsideOperators):
    """The peak, in bytes, of live tensors of one kind of device that were made within the context.

    Attributes:
        bytes: the peak so far; it may be set to 0 to begin anew.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def see(self, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Count the storages of the results."""
        known = len(self.live)
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.device.type == self.device:
                storage = x.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        if len(self.live) > known:
            self.count()

    def count(self) -> None:
        """Forget what is gone, and note the rest if it is more than ever."""
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))


@contextmanager
def no_launches() -> Iterator[None]:
    """Within the context, launches do nothing."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    JITFunction.run = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        JITFunction.run = run  # type: ignore[method-assign]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """An empty tensor on the meta device."""
    return torch.empty(*shape, dtype=dtype, device="meta")
