"""How our Triton launches become torch operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from dla_kernels.assembler import choose_assembler


def operator(name: str, *, changes: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """`torch.library.custom_op` that makes the tensors' GPU the current one while it runs.

    Triton launches on the current GPU, wherever the tensors are: kernels for a model on `cuda:1` would run on `cuda:0`.
    `changes` names the arguments that are written.
    """

    def decorate(function: Callable[..., Any]) -> CustomOpDef:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with gpu_of((*args, *kwargs.values())):
                return function(*args, **kwargs)

        schema = torch.library.infer_schema(function, mutates_args=changes)
        return torch.library.custom_op(name, run, mutates_args=changes, schema=schema)

    return decorate


def gpu_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """Makes the GPU of the first tensor the current one; does nothing if that tensor is not on a GPU."""
    first = next(x for x in arguments if isinstance(x, Tensor))
    if not first.is_cuda:
        return nullcontext()
    choose_assembler(first.device.index)
    return torch.cuda.device_of(first)
