"""What `torch.compile` leaves alone: the paths that are loops over tokens or run in numba.

The Triton path is custom operators and stays inside a compiled graph; these two cost a graph break each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_compiled_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Applies `torch.compiler.disable` at the first call; at import it would load the whole compiler (a second)."""
    left_alone: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not left_alone:
            left_alone.append(torch.compiler.disable(function))
        return left_alone[0](*args, **kwargs)

    return run
