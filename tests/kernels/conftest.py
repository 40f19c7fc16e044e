"""Shared by the tests of the op: inputs and plans (inputs.py), one tolerance, and memory checks of interpreted
kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dla_kernels import Cache, Plan, multi_state_attention
from dla_kernels.self_check.finding import relative_error
from tests.kernels.inputs import THRESHOLDS, Inputs, inputs_of, plan_of
from tests.kernels.report import loaded_report


@pytest.fixture
def compile_report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with the compiler that the interpreter otherwise replaces."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return loaded_report()


@pytest.fixture(autouse=True)
def watched_memory(request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """Checks that interpreted kernels touch only their own memory and depend on no other program (memory_checks.py).

    Yields the names of the kernels that ran.
    """
    if request.node.get_closest_marker("interpret") is None:
        yield set()
        return
    from tests.kernels.memory_checks import checking_memory
    from tests.kernels.quick_interpreter import quick_interpreter

    with quick_interpreter(), checking_memory() as ran:
        yield ran


@pytest.fixture
def draw_inputs() -> Callable[..., Inputs]:
    return inputs_of


@pytest.fixture
def thresholds() -> Tensor:
    return torch.tensor(THRESHOLDS)


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    return plan_of


@pytest.fixture
def read() -> Callable[..., tuple[Tensor, Cache | None]]:
    """`multi_state_attention` for `Inputs`."""

    def call(inputs: Inputs, plan: Plan, **options: Any) -> tuple[Tensor, Cache | None]:
        return multi_state_attention(**inputs.named(), plan=plan, **options)  # type: ignore[arg-type]

    return call


@pytest.fixture
def error() -> Callable[[Tensor, Tensor], float]:
    return relative_error


@pytest.fixture
def assert_as_precise(error: Callable[[Tensor, Tensor], float]) -> Callable[..., None]:
    """The tolerance of every path but the definition: at most twice the error that the definition itself makes in the
    same type, plus one rounding of that type."""

    def check(name: str, fast: Tensor, definition: Tensor, exact: Tensor) -> None:
        assert fast.dtype == definition.dtype
        allowed = 2 * error(definition, exact) + torch.finfo(fast.dtype).eps
        assert error(fast, exact) <= allowed, f"{name}: error {error(fast, exact):.1e}, allowed {allowed:.1e}"

    return check


@pytest.fixture
def documents_of() -> Callable[[Tensor], Iterator[tuple[int, int]]]:
    """Begin and end of each packed document."""

    def cut(cu_seqlens: Tensor) -> Iterator[tuple[int, int]]:
        ends = cu_seqlens.tolist()
        return pairwise(ends)

    return cut
