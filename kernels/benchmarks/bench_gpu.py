"""Times the op on a GPU beside its peers, and writes `results/<gpu>.json` and a table. `make bench-gpu`.

Every case is checked for correctness in the same run (the case's own shape at 1,024 tokens, in the timed type, against
the torch backend in float32); a case that fails its check is reported as failed and gets no time. The run stops before
`--minutes` is over and goes on where it stopped when called again; `--anew` begins from nothing. It stops, too, where a
case leaves the GPU so that it takes no more work (an illegal address): all others would fail in this process.

Peers are timed where they can be imported: `fla` (simple_gla, gated delta rule, log-linear attention), SDPA always.
Kernels compile before anything is timed, in a process for each method and shape: one after the other takes minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time as clock
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import dla_kernels
from dla_kernels import dynamic_linear_attention, fenwick_plan, multi_state_attention, segment
from dla_kernels.segmentation.op import GateKind

RESULTS = Path(__file__).parent / "results"
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 FLOP/s, as the vendor prints them."""
ALLOWED_ERROR = 3e-2
"""Relative, in bfloat16: eight roundings of it."""
DEVICE, TYPE = "cuda", torch.bfloat16
LENGTHS = 16_384, 2_048, 65_536, 131_072
"""Tokens; the length of the targets first."""
OURS = "dla30", "dla15", "fenwick15"
"""Methods that run on the kernels of this project."""
CHECKED = 1_024
"""Tokens of the check before a case is timed."""
CALM, DENSE = 0.15, 0.4
"""Noise of features: a segment has 16 tokens, or nearly every token opens one, as where nothing steers a tau of 0.6."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """H, G, K, V of one layer, and its rule."""

    heads: int
    groups: int
    key_dim: int
    value_dim: int
    delta: bool


SHAPES = {
    "mamba2": Shape(heads=48, groups=1, key_dim=128, value_dim=64, delta=False),
    "gdn": Shape(heads=6, groups=6, key_dim=192, value_dim=384, delta=True),
    "square": Shape(heads=16, groups=16, key_dim=128, value_dim=128, delta=False),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a method at a shape, a length and a direction.

    "forward" and "training" (with backward) read a plan that was made before; "segment" makes one; "step" does all
    three, "gated step" with the straight-through gate; "decode" is one token of 16 sequences. "dense" ones have a
    boundary at nearly every token, all others at every sixteenth.
    """

    method: str
    shape: str
    tokens: int
    direction: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.shape} {self.tokens} {self.direction}"

    @property
    def noise(self) -> float:
        """Of the features."""
        return DENSE if self.direction.startswith("dense") else CALM


def cases() -> list[Case]:
    """All rows, in the order of `LENGTHS`."""
    found = []
    for tokens in LENGTHS:
        for shape in SHAPES:
            for method in ("dla30", "dla15", "fenwick15", "sdpa", "fla single", "fla log-linear"):
                found += [Case(method=method, shape=shape, tokens=tokens, direction=d) for d in ("forward", "training")]
            directions = ["segment", "step", "gated step"]
            directions += ["dense segment", "dense gated step"] if tokens == LENGTHS[0] else []
            found += [Case(method="dla30", shape=shape, tokens=tokens, direction=d) for d in directions]
    return found + [Case(method="dla30", shape=shape, tokens=1, direction="decode") for shape in SHAPES]


def draw(
    shape: Shape, tokens: int, slots: int, dtype: torch.dtype, batch: int = 1, noise: float = CALM
) -> dict[str, Any]:
    """Features that resemble their neighbours, so that segments mean something; unit keys."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def smooth(heads: int, size: int) -> Tensor:
        coarse = torch.randn(batch, -(-tokens // 16), heads, size, device=DEVICE, generator=generator)
        fine = torch.randn(batch, tokens, heads, size, device=DEVICE, generator=generator)
        return coarse.repeat_interleave(16, 1)[:, :tokens] + noise * fine

    def uniform(*size: int) -> Tensor:
        return torch.rand(batch, tokens, shape.heads, *size, device=DEVICE, generator=generator)

    k = torch.nn.functional.normalize(smooth(shape.groups, shape.key_dim), dim=-1)
    found = {
        "q": torch.randn(k.shape, device=DEVICE, generator=generator), "k": k,
        "v": smooth(shape.heads, shape.value_dim), "slot_weight": 0.5 + uniform(slots), "log_decay": -0.1 * uniform(),
    }  # fmt: skip
    if shape.delta:
        found["beta"] = uniform()
    return {name: x if name == "log_decay" else x.to(dtype) for name, x in found.items()}


def plan_of(method: str, inputs: dict[str, Any], gate: GateKind = "hard") -> Any:
    """By content for `dla..`, by position for `fenwick..`."""
    batch, tokens, heads, slots = inputs["slot_weight"].shape
    if method.startswith("fenwick"):
        return fenwick_plan(batch, tokens, heads, capacity=slots, device=DEVICE)
    return segment(inputs["k"], inputs["v"], slots, 0.6, gate=gate)


def call_of(case: Case) -> Callable[[], Any] | str:
    """What to time, or why it cannot be."""
    shape, dtype = SHAPES[case.shape], TYPE
    slots = 30 if case.method == "dla30" else 15
    inputs = draw(shape, case.tokens, slots, dtype, noise=case.noise)
    if case.direction == "decode":
        inputs = draw(shape, 1, slots, dtype, batch=16)
        cache = dynamic_linear_attention(**draw(shape, 512, slots, dtype, batch=16), capacity=slots, return_cache=True)[
            1
        ]

        def step() -> Any:
            with torch.no_grad():
                return dynamic_linear_attention(**inputs, capacity=slots, cache=cache, return_cache=True)

        return step
    if case.direction.endswith("segment"):
        return lambda: segment(inputs["k"], inputs["v"], slots, 0.6)
    leaves = [x.requires_grad_(case.direction != "forward") for x in inputs.values()]
    do = torch.randn(1, case.tokens, shape.heads, shape.value_dim, device=DEVICE, dtype=dtype)
    if case.direction.endswith("step"):
        gate: GateKind = "straight_through" if "gated" in case.direction else "hard"

        def step_of_all() -> Any:
            o, _ = multi_state_attention(**inputs, plan=plan_of(case.method, inputs, gate))  # type: ignore[arg-type]
            return torch.autograd.grad(o, leaves, do)

        return step_of_all
    run = forward_of(case, shape, inputs)
    if isinstance(run, str) or case.direction == "forward":
        return run

    def train() -> Any:
        return torch.autograd.grad(run(), leaves, do, allow_unused=True)

    return train


def forward_of(case: Case, shape: Shape, inputs: dict[str, Any]) -> Callable[[], Tensor] | str:
    """The read alone: for our methods the plan is made before, for peers there is none."""
    if case.method in OURS:
        plan = plan_of(case.method, inputs)
        return lambda: multi_state_attention(**inputs, plan=plan)[0]  # type: ignore[arg-type]
    repeats = shape.heads // shape.groups
    if case.method == "sdpa":

        def sdpa() -> Tensor:
            q, k = (inputs[n].repeat_interleave(repeats, 2).transpose(1, 2) for n in ("q", "k"))
            v = inputs["v"].transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

        return sdpa
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]
        from fla.ops.log_linear_attn import chunk_log_linear_attn  # pyright: ignore[reportMissingImports]
        from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"fla cannot be imported: {error}"
    if case.method == "fla log-linear":
        if shape.delta:
            return "fla has log-linear attention without the delta rule only"
        return lambda: chunk_log_linear_attn(
            inputs["q"], inputs["k"], inputs["v"], inputs["log_decay"], inputs["slot_weight"]
        )[0]

    def single() -> Tensor:
        q, k = (inputs[n].repeat_interleave(repeats, 2) for n in ("q", "k"))
        if shape.delta:
            return chunk_gated_delta_rule(q, k, inputs["v"], inputs["log_decay"], inputs["beta"])[0]
        return chunk_simple_gla(q, k, inputs["v"], inputs["log_decay"])[0]

    return single


def check(case: Case) -> float | None:
    """The largest relative error of output and gradients at `CHECKED` tokens; None for peers."""
    return checked(case.method, case.shape, case.noise) if case.method in OURS else None


@cache
def checked(method: str, shape: str, noise: float) -> float:
    """The same, once in a run for cases that it is the same for."""
    inputs = draw(SHAPES[shape], CHECKED, 30 if method == "dla30" else 15, TYPE, noise=noise)
    plan = plan_of(method, inputs)
    found = []
    for backend, dtype in (("torch", torch.float32), ("triton", None)):
        leaves = {n: x.detach().to(dtype or x.dtype).requires_grad_() for n, x in inputs.items()}
        o, _ = multi_state_attention(**leaves, plan=plan, backend=backend)  # type: ignore[arg-type]
        do = torch.randn(o.shape, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(1))
        gradients = torch.autograd.grad(o, list(leaves.values()), do.to(TYPE).to(o.dtype))
        found.append([o.detach(), *gradients])
    errors = [((x.float() - y.float()).norm() / y.float().norm()).item() for y, x in zip(*found, strict=True)]
    return max(errors) if all(e == e for e in errors) else float("nan")


def floor_seconds(case: Case) -> float | None:
    """The cost floor of DESIGN section 2: `2 M K V` FLOP a token and head forward, three times that for training."""
    slots = {"dla30": 30, "dla15": 15, "fenwick15": 15}.get(case.method)
    peak = next((x for name, x in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    if slots is None or peak is None or case.direction not in ("forward", "training"):
        return None
    shape = SHAPES[case.shape]
    products = 2 * slots * shape.key_dim * shape.value_dim * shape.heads * case.tokens
    return products * (3 if case.direction == "training" else 1) / peak


def timed(run: Callable[[], Any]) -> tuple[list[float], int]:
    """Seconds of at least 5 and at most 30 calls, about half a second of them, and the most bytes that one took.

    Calls follow each other as in training, where the host is ahead of the GPU: it waits after every fifth.
    """
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < 5 or (len(times) < 30 and sum(times) < 0.5):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(6)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]
    return times, torch.cuda.max_memory_allocated() - before


def measure(case: Case) -> dict[str, Any]:
    """The row of one case: checked, and timed if that passed."""
    error = check(case)
    row: dict[str, Any] = asdict(case) | {"error": error}
    if error is not None and not error <= ALLOWED_ERROR:
        return row | {"failed": f"error {error:.1e} above {ALLOWED_ERROR}: not timed"}
    run = call_of(case)
    if isinstance(run, str):
        return row | {"failed": run}
    times, extra = timed(run)
    median, floor = statistics.median(times), floor_seconds(case)
    return row | {
        "seconds": median, "calls": len(times), "extra_bytes": extra,
        "times_floor": None if floor is None else median / floor,
    }  # fmt: skip


def warm(chosen: list[Case], until: float) -> None:
    """Has kernels compiled, by a process for each of our methods and shapes; what fails here, fails again.

    What is compiled by `until`, a reading of the clock, is found again by the next call.
    """
    pairs = dict.fromkeys(f"{case.method},{case.shape}" for case in chosen if case.method in OURS)
    print(f"compiling for {', '.join(pairs)}", flush=True)
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--warm", pair], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for pair in pairs
    ]
    for process in running:
        try:
            process.wait(max(0.0, until - clock.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def compile_all(pair: str) -> None:
    """Calls everything of a method at a shape once, at the first length."""
    method, shape = pair.split(",")
    for case in cases():
        if (case.method, case.shape) == (method, shape) and case.tokens in (LENGTHS[0], 1):
            check(case)
            run = call_of(case)
            assert not isinstance(run, str), run
            run()


def takes_no_more_work() -> bool:
    """Whether the GPU refuses all that this process asks of it, as it does after an illegal address."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a case."""
    lines = [
        "| method | shape | tokens | direction | ms | x floor | extra GB | error |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        head = f"| {row['method']} | {row['shape']} | {row['tokens']} | {row['direction']} |"
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        if "failed" in row:
            lines.append(f"{head} {row['failed']} | | | {error} |")
            continue
        ratio = "" if row["times_floor"] is None else f"{row['times_floor']:.2f}"
        lines.append(f"{head} {1e3 * row['seconds']:.3f} | {ratio} | {row['extra_bytes'] / 1e9:.2f} | {error} |")
    return "\n".join(lines)


def versions_here() -> dict[str, str]:
    """What a time depends on: times of other kernels do not stand in one table with these."""
    digest = hashlib.sha256()
    folder = Path(dla_kernels.__file__).parent
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    gpu = torch.cuda.get_device_name()
    return {"torch": torch.__version__, "triton": triton.__version__, "gpu": gpu, "kernels": digest.hexdigest()[:12]}


def main() -> int:
    """Measures what is not yet measured, writes after each case, prints the table."""
    parser = argparse.ArgumentParser(description="Time the op on this GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop before this; call again to go on")
    parser.add_argument("--anew", action="store_true", help="forget earlier results")
    parser.add_argument("--only", nargs="*", help="cases whose name contains one of these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--warm", metavar="METHOD,SHAPE", help="only compile what this needs, for another process")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to time", file=sys.stderr)
        return 1
    if arguments.warm:
        compile_all(arguments.warm)
        return 0
    begin = clock.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{torch.cuda.get_device_name().replace(' ', '-').lower()}.json"
    done: dict[str, dict[str, Any]] = {}
    versions = versions_here()
    if path.exists() and not arguments.anew:
        earlier = json.loads(path.read_text())
        if earlier["versions"] == versions:
            done = earlier["rows"]
        else:
            print(f"{path} was timed with other versions or other kernels: beginning anew")
    asked = [case for case in cases() if not arguments.only or any(part in case.name for part in arguments.only)]
    asked = [case for case in asked if case.name not in done]
    if any(case.method in OURS for case in asked):
        warm(asked, begin + 60 * arguments.minutes)
    for case in asked:
        if clock.monotonic() - begin > 60 * arguments.minutes:
            print("stopped: time is up; call again to go on")
            break
        try:
            done[case.name] = measure(case)
        except Exception as error:  # one case must not take the others with it: out of memory, a peer that refuses
            why = " ".join(str(error).split())[:200]  # on one line, for the table
            done[case.name] = asdict(case) | {"error": None, "failed": f"{type(error).__name__}: {why}"}
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"versions": versions, "rows": done}, indent=1))
        os.replace(unfinished, path)  # a run that is killed leaves what was there
        print(table([done[case.name]]).splitlines()[-1], flush=True)
        if takes_no_more_work():
            print("stopped: the GPU takes no more work after this case; call again to go on with the next")
            break
    print("\n" + table(list(done.values())))
    path.with_suffix(".md").write_text(table(list(done.values())) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
