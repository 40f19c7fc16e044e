"""How long does a call of an operator take, besides the launch, through torch's dispatcher and past it? Runs from a
checkout; needs no GPU.

    PYTHONPATH=kernels python kernels/benchmarks/operator_calls.py

The operator takes six tensors, as that of a token does, and launches nothing. The two ways take turns, so that a busy
machine slows both alike; the median of many rounds counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from dla_kernels.operators import operator

CALLS = 100
"""Of one kind in a round."""


@operator("dla_benchmark::nothing")
def nothing(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """Returns memory of the size of `v`, as it comes."""
    return torch.empty_like(v)


@torch.no_grad()
def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101, help=f"of {CALLS} calls each (default 101)")
    rounds = parser.parse_args().rounds
    arguments = [torch.ones(1, 8) for _ in range(6)]
    ways: dict[str, Callable[..., Any]] = {"through the dispatcher": nothing.definition, "past it": nothing}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            since = perf_counter()
            for _ in range(CALLS):
                call(*arguments)
            seconds[name].append((perf_counter() - since) / CALLS)
    through, past = (1e6 * statistics.median(times) for times in seconds.values())
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"through the dispatcher {through:.1f} us a call, past it {past:.1f}; ratio {through / past:.1f}")


if __name__ == "__main__":
    main()
