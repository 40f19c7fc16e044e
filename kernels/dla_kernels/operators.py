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
from dla_kernels.first_derivatives import refuse_second_derivative, require_no_tangents


def operator(
    name: str, *, changes: tuple[str, ...] = (), is_gradient: bool = False
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """`torch.library.custom_op` that makes the tensors' GPU the current one while it runs.

    Triton launches on the current GPU, wherever the tensors are: kernels for a model on `cuda:1` would run on `cuda:0`.
    `changes` names the arguments that are written. `is_gradient`: it computes derivatives, which have none themselves.
    """

    def decorate(function: Callable[..., Any]) -> CustomOpDef:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            require_no_tangents()
            with gpu_of((*args, *kwargs.values())):
                return function(*args, **kwargs)

        schema = torch.library.infer_schema(function, mutates_args=changes)
        made = torch.library.custom_op(name, run, mutates_args=changes, schema=schema)
        if is_gradient:
            made.register_autograd(refuse_second_derivative)
        return made

    return decorate


def gpu_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """Makes the GPU of the first tensor the current one; does nothing if that tensor is not on a GPU."""
    first = next(x for x in arguments if isinstance(x, Tensor))
    if not first.is_cuda:
        return nullcontext()
    choose_assembler(first.device.index)
    return torch.cuda.device_of(first)
