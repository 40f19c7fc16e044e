"""Operations that are slow on a GPU whatever their size."""

from __future__ import annotations

import traceback
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.kernels.peak_memory import InsideOperators

_PACKAGES = ("dla_train", "dla_kernels")
_RUNNING = ("aten::cumsum", "aten::cummax", "aten::cummin", "aten::cumprod", "aten::logcumsumexp")


class Slow(InsideOperators):
    """Operations for which the host would wait until the GPU has done all it was told to, and those that do not use
    what a GPU has.

    The first are copies to or from the GPU, except those from pinned memory that were asked not to wait, and what makes
    such a copy on its way.
    A number of the host beside tensors of the GPU goes along with the launch. (What would need the content of a tensor
    of the GPU raises an error by itself, because fake tensors have none.) The others are running sums over any but the
    last dimension, which go element by element, and products of large 16-bit matrices with rows that do not all begin
    at a multiple of 16 bytes, which tensor cores are not fed with at full speed.

    Attributes:
        found: what and where they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def see(self, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Note the operation if it is one."""
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        if _waits(name, tensors, args, kwargs) or _goes_step_by_step(name, args) or _is_crooked(name, tensors):
            calls = [one for one in traceback.extract_stack() if any(name in one.filename for name in _PACKAGES)]
            self.found.append(f"{name} in {calls[-1].filename}:{calls[-1].lineno}: {calls[-1].line}")


def _waits(name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> bool:
    if not {x.device.type for x in tensors} >= {"cpu", "cuda"}:
        return False
    if name.startswith(("aten::_to_copy", "aten::to.")):
        return not (kwargs.get("non_blocking", False) and getattr(args[0], "is_in_pinned_memory", False))
    if name == "aten::copy_":
        return True
    return "index_put" in name or any(x.ndim for x in tensors if x.device.type == "cpu")


def _goes_step_by_step(name: str, args: Any) -> bool:
    return name.startswith(_RUNNING) and args[1] not in (-1, args[0].ndim - 1)


def _is_crooked(name: str, tensors: list[Tensor]) -> bool:
    if name not in ("aten::mm", "aten::addmm") or tensors[0].shape[0] < 512:
        return False
    return any(x.element_size() == 2 and max(x.stride()) % 8 for x in tensors)
