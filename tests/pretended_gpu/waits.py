"""When the host waits for the GPU."""

from __future__ import annotations

import traceback
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.kernels.peak_memory import InsideOperators

_PACKAGES = ("dla_train", "dla_kernels")


class Waits(InsideOperators):
    """Operations for which the host would wait until the GPU has done all it was told to.

    These are copies to or from the GPU, unless they were asked not to wait, and what makes such a copy on its way. A
    number of the host beside tensors of the GPU goes along with the launch. (What would need the content of a tensor of
    the GPU raises an error by itself, because fake tensors have none.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def see(self, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Note the operation if it waits."""
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        if {x.device.type for x in tensors} >= {"cpu", "cuda"} and self._waits(name, args, kwargs):
            calls = [one for one in traceback.extract_stack() if any(name in one.filename for name in _PACKAGES)]
            self.found.append(f"{name} in {calls[-1].filename}:{calls[-1].lineno}: {calls[-1].line}")

    @staticmethod
    def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        if name.startswith(("aten::_to_copy", "aten::to.")):
            return not kwargs.get("non_blocking", False)
        if name == "aten::copy_":
            return not (len(args) > 2 and args[2])
        on_host = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.device.type == "cpu"]
        return "index_put" in name or any(x.ndim for x in on_host)
