"""Times the op on a GPU beside its peers, and writes `results/<gpu>.json` and a table. `make bench-gpu`.

Every case is checked for correctness in the same run (the case's own shape at 1,024 tokens, in the timed type, against
the torch backend in float32); a case that fails its check is reported as failed and gets no time. After `--minutes` no
new case begins, and the next call goes on with the missing ones; `--anew` starts over. The run also stops if a case
leaves the GPU unusable for this process (an illegal address), because all later cases would fail.

All kernels are compiled before anything is timed, in one process per method and shape, side by side: one after the
other takes minutes.
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
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import bench_cases
import torch
import triton
from bench_cases import OURS, Case, call_of, cases, draw, plan_of

import dla_kernels
from dla_kernels import multi_state_attention

RESULTS = Path(__file__).parent / "results"
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 FLOP/s, from the vendor's data sheets."""
ALLOWED_ERROR = 3e-2
"""Relative error allowed in bfloat16: eight roundings."""
CHECKED = 1_024
"""Tokens used to check a case before it is timed."""


def check(case: Case) -> float | None:
    """The largest relative error of output and gradients at `CHECKED` tokens; None for peers."""
    return checked(case.method, case.shape, case.noise) if case.method in OURS else None


@cache
def checked(method: str, shape: str, noise: float) -> float:
    """As `check`; computed once per run for all cases that share method, shape and noise."""
    inputs = draw(bench_cases.SHAPES[shape], CHECKED, 30 if method == "dla30" else 15, bench_cases.TYPE, noise=noise)
    plan = plan_of(method, inputs)
    found = []
    for backend, dtype in (("torch", torch.float32), ("triton", None)):
        leaves = {n: x.detach().to(dtype or x.dtype).requires_grad_() for n, x in inputs.items()}
        o, _ = multi_state_attention(**leaves, plan=plan, backend=backend)  # type: ignore[arg-type]
        do = torch.randn(
            o.shape, device=bench_cases.DEVICE, generator=torch.Generator(bench_cases.DEVICE).manual_seed(1)
        )
        gradients = torch.autograd.grad(o, list(leaves.values()), do.to(bench_cases.TYPE).to(o.dtype))
        found.append([o.detach(), *gradients])
    errors = [((x.float() - y.float()).norm() / y.float().norm()).item() for y, x in zip(*found, strict=True)]
    return max(errors) if all(e == e for e in errors) else float("nan")


def floor_seconds(case: Case) -> float | None:
    """The least time that reading the slots can take: `2 M K V` FLOP per token and head forward, three times that for
    training, at the GPU's peak. None for peers, other directions and unknown GPUs."""
    slots = {"dla30": 30, "dla15": 15, "fenwick15": 15}.get(case.method)
    peak = next((x for name, x in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    if slots is None or peak is None or case.direction not in ("forward", "training"):
        return None
    shape = bench_cases.SHAPES[case.shape]
    products = 2 * slots * shape.key_dim * shape.value_dim * shape.heads * case.tokens
    return products * (3 if case.direction == "training" else 1) / peak


def timed(run: Callable[[], Any]) -> tuple[list[float], int]:
    """Seconds of each of 5 to 30 calls (until they take half a second), and the most bytes allocated during them.

    As in training, the host runs ahead of the GPU: it waits only after every fifth call.
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
    """The result row of one case: checked, and timed if the check passed."""
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
    """Compiles kernels in one process for each of our methods and shapes, until the clock reads `until`.

    Triton caches what is compiled by then, so the next call of the benchmark finds it. Errors are ignored here, because
    they appear again when the case runs.
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
    """Calls every case of one "METHOD,SHAPE" once, at the first length and for decode."""
    method, shape = pair.split(",")
    for case in cases():
        if (case.method, case.shape) == (method, shape) and case.tokens in (bench_cases.LENGTHS[0], 1):
            check(case)
            run = call_of(case)
            assert not isinstance(run, str), run
            run()


def takes_no_more_work() -> bool:
    """Whether the GPU refuses all further work of this process, as it does after an illegal address."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, one line per case."""
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
    """What a time depends on. Times from other versions or kernels are not mixed with these in one table."""
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
        except Exception as error:  # out of memory, or a peer that refuses: the other cases go on
            why = " ".join(str(error).split())[:200]  # on one line, for the table
            done[case.name] = asdict(case) | {"error": None, "failed": f"{type(error).__name__}: {why}"}
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"versions": versions, "rows": done}, indent=1))
        os.replace(unfinished, path)  # a run killed while writing keeps the earlier results
        print(table([done[case.name]]).splitlines()[-1], flush=True)
        if takes_no_more_work():
            print("stopped: the GPU takes no more work after this case; call again to go on with the next")
            break
    print("\n" + table(list(done.values())))
    path.with_suffix(".md").write_text(table(list(done.values())) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
