"""Makes memory that a kernel forgets to write visible: it holds NaN, or a number that no table holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within the context, uninitialized new tensors on the CPU hold such values."""
    with (
        mock.patch.object(torch, "empty", _poisoning(torch.empty)),
        mock.patch.object(torch, "empty_like", _poisoning(torch.empty_like)),
    ):
        yield


def _poisoning(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        x = make(*args, **kwargs)
        return x.fill_(float("nan") if x.is_floating_point() else 111) if x.device.type == "cpu" else x

    return made
