"""What `torch.compile` does not look into: the paths that are loops over tokens or run in numba, which cost a graph
break each, and what is asked about the machine.

The Triton path is custom operators and stays inside a compiled graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def constant_in_compiled_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compiler.assume_constant_result`: graphs hold what `function` returned while they were made.

    That decorator sets an attribute, but loads the whole compiler (a second) to do so, which at import is too much.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def outside_compiled_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Applies `torch.compiler.disable` at the first call; at import it would load the whole compiler (a second)."""
    left_alone: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not left_alone:
            left_alone.append(torch.compiler.disable(function))
        return left_alone[0](*args, **kwargs)

    return with_graphs_of_its_own(run)


def with_graphs_of_its_own(wrapper: Callable[P, R]) -> Callable[P, R]:
    """A function that a decorator has made, with a copy of its code. Graphs belong to code, which all functions of a
    decorator share, and from the ninth graph on `torch.compile` warns and leaves the code alone."""
    wrapper.__code__ = wrapper.__code__.replace()  # type: ignore[attr-defined]
    return wrapper
