"""Is the segmentation on the CPU cheaper than the read it prepares? Prints a table; runs from a checkout.

    PYTHONPATH=kernels python kernels/benchmarks/segment_vs_reader.py

The aim: `segment` takes less time than the chunked forward for B 4, T 2,048, H 8, K = V = 64, M 30 (the first rows).
The three timed calls take turns, so that a busy machine slows all of them alike; the median of several rounds counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from dla_kernels import Plan, multi_state_attention, segment


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a shape, its update rule, and the boundary rate that its features should give."""

    batch: int = 4
    time: int = 2048
    groups: int = 8
    heads: int = 8
    key_dim: int = 64
    value_dim: int = 64
    capacity: int = 30
    delta: bool = False
    rate: float = 0.2


CASES = (
    Case(rate=0.0),
    Case(rate=0.2),
    Case(rate=1.0),
    Case(rate=0.2, delta=True),
    Case(rate=0.2, capacity=15),
    Case(rate=0.2, capacity=4),
    Case(rate=0.2, groups=1),
    Case(rate=0.2, batch=1, time=8192),
    Case(rate=0.2, batch=1, groups=1, key_dim=128),
    Case(rate=0.2, groups=4, heads=4, key_dim=32, value_dim=32),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median seconds, and the plan's actual boundary rate."""

    rate: float
    segment: float
    forward: float
    training: float


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds per row (default 7)")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    parser.add_argument("--rows", type=int, default=len(CASES), help="only the first rows")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print(f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads")
    print(f"float32, median of {arguments.rounds} rounds, milliseconds; ratio = segment / forward\n")
    print("| B | T | G | H | K | V | M | rule | boundary rate | segment | forward | ratio | forward + backward |")
    print("|---" * 13 + "|")
    for case in CASES[: arguments.rows]:
        m = measure(case, arguments.rounds)
        sizes = (case.batch, case.time, case.groups, case.heads, case.key_dim, case.value_dim, case.capacity)
        print(
            f"| {' | '.join(map(str, sizes))} | {'delta' if case.delta else 'plain'} | {m.rate:.3f} "
            f"| {1e3 * m.segment:.1f} | {1e3 * m.forward:.1f} | {m.segment / m.forward:.2f} | {1e3 * m.training:.1f} |",
            flush=True,
        )


def measure(case: Case, rounds: int) -> Measured:
    """Times the plan, the read, and the read with its backward."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    tokens = (case.batch, case.time)
    per_head = (*tokens, case.heads)
    q = torch.randn(*tokens, case.groups, case.key_dim, generator=generator)
    k = torch.nn.functional.normalize(_correlated((*tokens, case.groups, case.key_dim), generator), dim=-1)
    v = _correlated((*per_head, case.value_dim), generator)
    weight = 0.5 + uniform(*per_head, case.capacity)
    log_decay, beta = -0.1 * uniform(*per_head), uniform(*per_head) if case.delta else None
    inputs = [x for x in (q, k, v, weight, log_decay, beta) if x is not None]
    threshold = _threshold_for(case.rate, k, v, case.capacity)
    plan = segment(k, v, case.capacity, threshold, backend="torch")

    def read(plan: Plan) -> Tensor:
        return multi_state_attention(q, k, v, weight, plan, log_decay, beta, backend="torch")[0]

    def forward() -> None:
        with torch.no_grad():
            read(plan)

    def training() -> None:
        for x in inputs:
            x.requires_grad_().grad = None
        read(plan).sum().backward()
        for x in inputs:
            x.requires_grad_(False)

    def plans() -> None:
        segment(k, v, case.capacity, threshold, backend="torch")

    times = _median_times((plans, forward, training), rounds)
    rate = plan.boundary[:, 1:].float().mean().item()
    return Measured(rate=rate, segment=times[0], forward=times[1], training=times[2])


def _correlated(shape: tuple[int, ...], generator: torch.Generator, persistence: float = 0.98) -> Tensor:
    """AR(1) features of unit variance, because neighboring tokens of a text resemble each other."""
    x = torch.randn(shape, generator=generator)
    for t in range(1, shape[1]):
        x[:, t].mul_((1 - persistence**2) ** 0.5).add_(x[:, t - 1], alpha=persistence)
    return x


def _threshold_for(rate: float, k: Tensor, v: Tensor, capacity: int) -> float:
    """The threshold that gives about this boundary rate, by bisection on one sequence."""
    if rate in (0.0, 1.0):
        return 2.0 * (1.0 - rate)
    low, high = 0.0, 2.0
    for _ in range(8):
        middle = (low + high) / 2
        found = segment(k[:1], v[:1], capacity, middle, backend="torch").boundary.float().mean().item()
        low, high = (middle, high) if found > rate else (low, middle)
    return (low + high) / 2


def _median_times(calls: tuple[Callable[[], None], ...], rounds: int) -> list[float]:
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            begin = perf_counter()
            call()
            taken.append(perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def _processor() -> str:
    """The name of the machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
