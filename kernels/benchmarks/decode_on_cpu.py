"""How much faster than the recurrence is the compiled loop that reads single tokens on the CPU? Runs from a checkout.

    PYTHONPATH=kernels python kernels/benchmarks/decode_on_cpu.py

One token of one sequence, 30 slots, at the shapes of the recipes of 130M parameters. The two take turns, so that a busy
machine slows both alike; the median of many tokens counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from time import perf_counter

import torch
from torch import Tensor

from dla_kernels import Cache, multi_state_attention, segment
from dla_kernels.arguments import Backend

SHAPES = {"mamba2-dla-130m": (24, 1, 128, 64, False), "gdn-dla-130m": (3, 3, 192, 384, True)}
"""H, G, K, V and whether it is the delta rule."""
SLOTS = 30


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=41, help="timed tokens per row (default 41)")
    tokens = parser.parse_args().tokens
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"float32, median of {tokens} tokens, milliseconds a layer\n")
    print("| shape | recurrence | loop | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, shape in SHAPES.items():
        recurrence, loop = measure(*shape, tokens)
        print(f"| {name} | {1e3 * recurrence:.2f} | {1e3 * loop:.2f} | {recurrence / loop:.1f} |", flush=True)


@torch.no_grad()
def measure(heads: int, groups: int, keys: int, values: int, delta: bool, tokens: int) -> tuple[float, float]:
    """Median seconds of a token: by the recurrence, by the loop."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(1, tokens + 64, *shape, generator=generator)

    q, k, v = drawn(groups, keys), torch.nn.functional.normalize(drawn(groups, keys), dim=-1), drawn(heads, values)
    weight, log_decay = drawn(heads, SLOTS).exp(), -0.1 * drawn(heads).exp()
    beta = drawn(heads).sigmoid() if delta else None
    caches: dict[Backend, Cache | None] = {"reference": None, "auto": None}
    seconds: dict[Backend, list[float]] = {backend: [] for backend in caches}
    for begin, end in [(0, 64), *((t, t + 1) for t in range(64, tokens + 64))]:
        here = slice(begin, end)
        one = caches["auto"]
        plan = segment(k[:, here], v[:, here], SLOTS, 1.3, cache=one)
        for backend, cache in caches.items():
            given = cache.donated() if cache is not None else None
            since = perf_counter()
            _, caches[backend] = multi_state_attention(
                q[:, here], k[:, here], v[:, here], weight[:, here], plan, log_decay[:, here],
                None if beta is None else beta[:, here], cache=given, return_cache=True, backend=backend,
            )  # fmt: skip
            if begin:
                seconds[backend].append(perf_counter() - since)
    return statistics.median(seconds["reference"]), statistics.median(seconds["auto"])


if __name__ == "__main__":
    main()
