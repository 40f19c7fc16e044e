"""One of several ranks, of which the others are not there. FSDP exchanges no fake tensors, and holds what it would."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

from tests.kernels.peak_memory import PeakMemory


class _Stream:
    stream_id, device_index, device_type = 0, 0, 1  # as torch 2.15 asks; 1 is CUDA

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, _: _Stream) -> None: ...
    def wait_event(self, _: _Event) -> None: ...
    def record_event(self, *_: Any) -> _Event:
        return _Event()


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...


@contextlib.contextmanager
def rank_0_of(ranks: int) -> Iterator[None]:
    """Within the context, this process is the first of `ranks` on GPUs."""
    stream = _Stream()
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        with (
            patch.multiple(
                torch.cuda,
                Stream=_Stream,
                Event=_Event,
                current_stream=lambda *_: stream,
                stream=lambda _: contextlib.nullcontext(),
                current_device=lambda: 0,
                device_count=lambda: ranks,
                set_device=lambda _: None,
            ),
            patch.object(torch, "Event", _Event),
            patch.object(Tensor, "record_stream", lambda *_: None),
        ):
            yield
    finally:
        distributed.destroy_process_group()


class PeakOfShards(PeakMemory):
    """As `PeakMemory`, of a rank's own parts of tensors."""

    def see(self, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Count the storages of the results; of a tensor that all ranks hold, that of this rank's part."""
        own = [x._local_tensor if isinstance(x, DTensor) else x for x in tree_leaves(made)]
        super().see(name, args, kwargs, own)

    @contextlib.contextmanager
    def knowing_gathered_weights(self) -> Iterator[None]:
        """They keep their storages, whose size changes: to nothing when a block has run."""

        def noting(resize: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
            def resized(x: Tensor) -> None:
                resize(x)
                storage = x.untyped_storage()
                if storage._cdata in self.live:
                    self.live[storage._cdata] = self.live[storage._cdata][0], storage.nbytes()
                    self.count()

            return resized

        alloc, free = (noting(getattr(_fsdp_param, name)) for name in ("alloc_storage", "free_storage"))
        with patch.multiple(_fsdp_param, alloc_storage=alloc, free_storage=free):
            yield
