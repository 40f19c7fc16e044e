"""Where the time of the op goes on a GPU: every kernel of a call, with its time and its share. `make profile-gpu`.

This is a profile, not a benchmark: the profiler slows launches down, so only the kernels' own times and their
proportions are meaningful. Nothing is checked for correctness (that is `make test-gpu`), and no speed-up should be
quoted from it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from bench_cases import CALM, DENSE, SHAPES, TYPE, Case, call_of, draw
from layer_step import layer_step, torch_around_the_op
from torch.profiler import ProfilerActivity, profile

from dla_kernels import multi_state_attention, segment
from dla_kernels.reader.fused import configs

CALLS = 3


def kernels_of(run: Callable[[], Any]) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches of each kernel per call of `run`, averaged over `CALLS` calls, slowest first."""
    run()  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
        for _ in range(CALLS):
            run()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    for event in found.events() or []:
        if event.device_type.name == "CUDA":
            times[re.sub(r"<.*|\(.*", "", event.name)[:60]].append(event.device_time_total / 1e3)
    rows = {name: (sum(all_of) / CALLS, len(all_of) // CALLS) for name, all_of in times.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1][0]))


def show(title: str, rows: dict[str, tuple[float, int]], most: int) -> None:
    """Prints the slowest `most` kernels and the sum of all."""
    total = sum(ms for ms, _ in rows.values())
    print(f"\n{title}: {total:.3f} ms in kernels")
    for name, (ms, launches) in list(rows.items())[:most]:
        print(f"  {ms:8.3f} ms {100 * ms / total:5.1f} %  {launches:4d} x  {name}")


def profile_layer(shape: str, tokens: int, slots: int, most: int) -> None:
    """Profiles a layer with kernels around the op, and with torch there."""
    step = layer_step(shape, tokens, slots, "cuda")
    show(f"a layer of {shape}, forward and backward", kernels_of(step), most)
    with torch_around_the_op():
        show("the same with torch around the op", kernels_of(step), most)


def main() -> int:
    """Profiles segmenting, decoding, forward, and forward with backward, at one shape."""
    parser = argparse.ArgumentParser(description="Show where the op's time goes on this GPU.")
    parser.add_argument("--shape", choices=list(SHAPES), default="mamba2")
    parser.add_argument("--slots", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--gate", choices=("hard", "straight_through"), default="straight_through")
    parser.add_argument("--dense", action="store_true", help="a boundary at nearly every token, not at every sixteenth")
    parser.add_argument("--rows", type=int, default=14, help="kernels to show")
    parser.add_argument("--sizes", nargs="*", default=[], metavar="NAME=VALUE", help="tile sizes, as tile=128 warps=4")
    parser.add_argument("--layer", action="store_true", help="a training step of a whole layer instead of the op alone")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to profile", file=sys.stderr)
        return 1
    if chosen.layer:
        profile_layer(chosen.shape, chosen.tokens, chosen.slots, chosen.rows)
        return 0
    shape = SHAPES[chosen.shape]
    inputs = draw(shape, chosen.tokens, chosen.slots, TYPE, noise=DENSE if chosen.dense else CALM)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    k, v = leaves["k"], leaves["v"]
    do = torch.randn(v.shape, device=v.device, dtype=v.dtype)

    def plan() -> Any:
        return segment(k, v, chosen.slots, 0.6, gate=chosen.gate)

    def forward() -> Any:
        with torch.no_grad():
            return multi_state_attention(**leaves, plan=made)[0]  # type: ignore[arg-type]

    def training() -> Any:
        o, _ = multi_state_attention(**leaves, plan=plan())  # type: ignore[arg-type]
        return torch.autograd.grad(o, list(leaves.values()), do)

    rate = plan().boundary.float().mean().item()
    print(f"{torch.cuda.get_device_name()}, {chosen.shape}, M {chosen.slots}, T {chosen.tokens}, "
          f"boundary rate {100 * rate:.1f} %, {' '.join(chosen.sizes) or 'sizes by rule'}")  # fmt: skip
    made = plan()
    with configs.override(**{name: int(value) for name, value in (pair.split("=") for pair in chosen.sizes)}):
        if not chosen.sizes:
            show("segment", kernels_of(lambda: segment(k.detach(), v.detach(), chosen.slots, 0.6)), chosen.rows)
            decode = call_of(Case(method="dla30", shape=chosen.shape, tokens=1, direction="decode"))
            assert not isinstance(decode, str), decode
            show("decode, one token of 16 sequences, M 30", kernels_of(decode), chosen.rows)
        show("forward", kernels_of(forward), chosen.rows)
        show("segment, forward and backward", kernels_of(training), chosen.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
