"""Launches compiled for a GPU and executed on the CPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import torch

from dla_kernels import arguments
from tests.kernels.executor.memory import Memory
from tests.kernels.executor.program import Program
from tests.kernels.executor.translate import translated
from tests.kernels.lowering import lowered
from tests.kernels.poisoned_memory import poisoned_memory
from tests.kernels.report import loaded_report

_compiled: dict[tuple[str, str, str], str] = {}


def ttgir_of(launch: Any, target: str) -> str:
    """The TTGIR of a launch (of `compile_report`), Triton's last representation before threads; compiled once per
    process."""
    key = target, launch.kernel.cache_key, launch.key()
    if key not in _compiled:
        _compiled[key] = lowered(launch, loaded_report().target_of(target), "ttir", "ttgir")
    return _compiled[key]


@contextmanager
def executing(target: str) -> Iterator[set[str]]:
    """Within the context, `backend="triton"` accepts tensors on the CPU, and "auto" chooses as for tensors on a GPU:
    kernels are compiled for the target (such as `sm_90`), with the tile sizes for it, and executed.

    Raises: ValueError if the target is no known NVIDIA GPU.

    Programs of a launch run in some order, but not in that of their numbers. Yields the names of the kernels that ran.
    """
    from triton.runtime.jit import JITFunction

    report = loaded_report()
    known = [name for name in report.SHARED_LIMIT if name.startswith("sm_")]
    if target not in known:
        raise ValueError(f"the target is {target!r}; it must be one of {', '.join(known)}")
    ran: set[str] = set()
    kernels: dict[str, Callable[..., None]] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = report.launch_of(self, args, kwargs)
        source, key = launch.source(), launch.key()
        if key not in kernels:
            kernels[key] = translated(ttgir_of(launch, target))
        ran.add(self.__name__)
        memory = Memory()
        given = [
            _given(memory, launch.arguments[parameter.name])
            for i, parameter in enumerate(self.params)
            if (i,) not in source.constants
        ]
        columns, rows, layers, *_ = (*grid, 1, 1)
        sizes = columns, rows, layers
        numbers = list(product(range(columns), range(rows), range(layers)))
        random.Random(0).shuffle(numbers)
        with np.errstate(all="ignore"):
            for number in numbers:
                kernels[key](Program(memory, number, sizes), *given)

    def resolved(backend: str, k: torch.Tensor, v: torch.Tensor, capacity: int) -> str:
        takes = arguments._obstacle_to_triton(k, v, capacity) is None
        return resolve("triton" if backend == "auto" and takes else backend, k, v, capacity)

    def chosen(backend: str, name: str, x: torch.Tensor, obstacle: str | None = None) -> str:
        takes = (obstacle or arguments._obstacle_on(name, x.device) or arguments._obstacle_of_type(name, x)) is None
        return choose("triton" if backend == "auto" and takes else backend, name, x, obstacle)

    resolve, choose = arguments.resolve_backend, arguments.torch_or_triton
    with (
        ExitStack() as patches,
        report.on(target),
        poisoned_memory(),
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(arguments, "_interpreting", return_value=True),
    ):
        for module in ("segmentation.op", "reader.op", "dynamic"):
            patches.enter_context(mock.patch(f"dla_kernels.{module}.resolve_backend", resolved))
        for module in (
            "convolution",
            "gated_norm",
            "gated_activation",
            "l2_norm",
            "rms_norm",
            "scaled_heads",
            "softplus",
        ):
            patches.enter_context(mock.patch(f"dla_kernels.layers.{module}.torch_or_triton", chosen))
        patches.enter_context(mock.patch("dla_kernels.positional_plans.torch_or_triton", chosen))
        yield ran


def _given(memory: Memory, x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return memory.address(x)
    return np.float32(x) if isinstance(x, float) else x
