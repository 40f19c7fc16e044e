"""What the tests of the op share: inputs whose segments mean something, plans of every kind, one derived tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dla_kernels import Cache, Plan, fenwick_plan, fixed_plan, multi_state_attention, segment, single_plan
from tests.kernels.report import loaded_report


@pytest.fixture
def compile_report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, where the interpreter has not taken the compiler's place."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return loaded_report()


@pytest.fixture(autouse=True)
def watched_memory(request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """Interpreted kernels touch nothing but their own, and wait for no program beside them (memory_checks.py).

    Gives the names of the kernels that ran.
    """
    if request.node.get_closest_marker("interpret") is None:
        yield set()
        return
    from tests.kernels.memory_checks import checking_memory
    from tests.kernels.quick_interpreter import quick_interpreter

    with quick_interpreter(), checking_memory() as ran:
        yield ran


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything the op reads, `[B, T, ...]`; heads H a multiple of groups G."""

    q: Tensor
    k: Tensor
    v: Tensor
    slot_weight: Tensor
    log_decay: Tensor | None
    beta: Tensor | None

    def named(self) -> dict[str, Tensor]:
        """Those that are there, by the names of `multi_state_attention`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return replace(self, **{name: change(x) for name, x in self.named().items()})

    def to(self, dtype: torch.dtype) -> Inputs:
        return self.map(lambda x: x.to(dtype))

    def tokens(self, begin: int, end: int) -> Inputs:
        return self.map(lambda x: x[:, begin:end])

    def leaves(self) -> Inputs:
        """The same values as leaves that require a gradient."""
        return self.map(lambda x: x.detach().clone().requires_grad_())


def correlated(shape: tuple[int, int, int, int], persistence: float, generator: torch.Generator) -> Tensor:
    """AR(1) features `[B, T, heads, D]` of unit variance: neighbours resemble each other, distant tokens do not."""
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    steps = [noise[:, 0]]
    for t in range(1, shape[1]):
        steps.append(persistence * steps[-1] + (1 - persistence**2) ** 0.5 * noise[:, t])
    return torch.stack(steps, 1)


@pytest.fixture
def draw_inputs() -> Callable[..., Inputs]:
    """Float64 inputs. Keys have norm 1, as the delta rule needs; sizes are no powers of two."""

    def draw(
        time: int,
        capacity: int,
        *,
        delta: bool = False,
        decay: bool = True,
        batch: int = 1,
        groups: int = 2,
        heads: int = 4,
        key_dim: int = 5,
        value_dim: int = 3,
        persistence: float = 0.95,
        seed: int = 0,
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        keys = correlated((batch, time, groups, key_dim), persistence, generator)
        return Inputs(
            q=torch.randn(batch, time, groups, key_dim, generator=generator, dtype=torch.float64),
            k=torch.nn.functional.normalize(keys, dim=-1),
            v=correlated((batch, time, heads, value_dim), persistence, generator),
            slot_weight=2 * uniform(batch, time, heads, capacity),
            log_decay=-0.2 * uniform(batch, time, heads) if decay else None,
            beta=uniform(batch, time, heads) if delta else None,
        )

    return draw


THRESHOLDS = (0.02, 0.3, 0.5, 1.9)
"""One per head: boundary at nearly every token, in the middle twice, almost never (test_boundary_rates.py)."""


@pytest.fixture
def thresholds() -> Tensor:
    return torch.tensor(THRESHOLDS)


@pytest.fixture
def make_plan(thresholds: Tensor) -> Callable[..., Plan]:
    """A plan of any kind for given inputs, going on from a cache where there is one."""

    def make(
        kind: str,
        inputs: Inputs,
        *,
        cu_seqlens: Tensor | None = None,
        cache: Cache | None = None,
        threshold: float | Tensor | None = None,
        **options: Any,
    ) -> Plan:
        sizes = inputs.v.shape[:3]
        capacity = inputs.slot_weight.shape[3]
        start = 0 if cache is None else cache.tokens
        if kind == "dynamic":
            tau = thresholds[: sizes[2]] if threshold is None else threshold
            return segment(inputs.k, inputs.v, capacity, tau, cu_seqlens, cache=cache, **options)
        if kind == "single":
            return single_plan(*sizes)
        if kind == "fixed":
            return fixed_plan(*sizes, block=7, capacity=capacity, cu_seqlens=cu_seqlens, start=start)
        return fenwick_plan(*sizes, capacity=capacity, cu_seqlens=cu_seqlens, start=start)

    return make


@pytest.fixture
def read() -> Callable[..., tuple[Tensor, Cache | None]]:
    """`multi_state_attention` for `Inputs`."""

    def call(inputs: Inputs, plan: Plan, **options: Any) -> tuple[Tensor, Cache | None]:
        return multi_state_attention(**inputs.named(), plan=plan, **options)  # type: ignore[arg-type]

    return call


@pytest.fixture
def error() -> Callable[[Tensor, Tensor], float]:
    """`||x - exact|| / ||exact||`; where the exact value is zero, `||x||`."""

    def relative(x: Tensor, exact: Tensor) -> float:
        norm = exact.double().norm().item()
        return (x.double() - exact.double()).norm().item() / (norm if norm > 0 else 1.0)

    return relative


@pytest.fixture
def assert_as_precise(error: Callable[[Tensor, Tensor], float]) -> Callable[..., None]:
    """The tolerance of every path that is not the definition: no more than twice the error that the definition itself
    makes in the same type, plus one rounding of that type."""

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
