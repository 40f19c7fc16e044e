"""How our Triton launches become torch operators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from dla_kernels.assembler import choose_assembler
from dla_kernels.first_derivatives import refuse_second_derivative, require_no_tangents

_PLAIN = (Tensor, torch.nn.Parameter)


class Operator:
    """A launch that torch's dispatcher knows, so that it is differentiated, compiled and traced.

    Where nobody wants any of this, as in generation and in a backward pass, a call goes past it, which saves
    the host several microseconds: generation of a single text waits for the host.

    Attributes:
        definition: what the dispatcher knows. run: the launch.
    """

    def __init__(self, definition: CustomOpDef, run: Callable[..., Any], changes: tuple[str, ...]) -> None:
        self.definition = definition
        self.run = run
        self.register_fake = definition.register_fake
        self.register_autograd = definition.register_autograd
        names = list(inspect.signature(run).parameters)
        self._changes = [names.index(name) for name in changes]

    def __call__(self, *args: Any) -> Any:
        """Takes the arguments of the decorated function, in their order."""
        if _is_watched(args):
            return self.definition(*args)
        results = self.run(*args)
        for index in self._changes:
            if not args[index].is_inference():
                torch.autograd.graph.increment_version(args[index])
        return results


def operator(
    name: str, *, changes: tuple[str, ...] = (), is_gradient: bool = False
) -> Callable[[Callable[..., Any]], Operator]:
    """`torch.library.custom_op` that makes the tensors' GPU the current one while it runs.

    Triton launches on the current GPU, wherever the tensors are: kernels for a model on `cuda:1` would run on `cuda:0`.
    `changes` names the arguments that are written. `is_gradient`: it computes derivatives, which have none themselves.
    """

    def decorate(function: Callable[..., Any]) -> Operator:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            require_no_tangents()
            with gpu_of((*args, *kwargs.values())):
                return function(*args, **kwargs)

        schema = torch.library.infer_schema(function, mutates_args=changes)
        made = torch.library.custom_op(name, run, mutates_args=changes, schema=schema)
        if is_gradient:
            made.register_autograd(refuse_second_derivative)
        return Operator(made, run, changes)

    return decorate


def gpu_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """Makes the GPU of the first tensor the current one; does nothing if that tensor is not on a GPU."""
    first = next(x for x in arguments if isinstance(x, Tensor))
    if not first.is_cuda:
        return nullcontext()
    choose_assembler(first.device.index)
    return torch.cuda.device_of(first)


def _is_watched(arguments: Iterable[Any]) -> bool:
    """Whether a call has to be known to autograd, a compiler, a tracer, a mode or a transform, or computes nothing."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or any(isinstance(x, Tensor) and (type(x) not in _PLAIN or x.is_meta) for x in arguments)
    )
