"""Times kernels on a GPU with launch options other than their own: `make try-gpu`.

`make try-gpu ARGS="read_kernel,values_backward_kernel:num_stages=2 keys_backward_kernel:maxnreg=168"` tries these;
without ARGS it tries those in `OPEN`. Each trial is one training step with the straight-through gate. Its output and
gradients are compared with those under the kernels' own options, and a wrong result gets no time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from bench_cases import SHAPES, TYPE, draw
from profile_gpu import kernels_of
from torch import Tensor

from dla_kernels import multi_state_attention, segment

Options = dict[str, dict[str, int]]
"""For each kernel, the options that replace those of its launches: num_stages, num_warps, maxnreg."""

PAIRS = "read_kernel,products_backward_kernel,values_backward_kernel,weights_backward_kernel"
OPEN = (
    f"{PAIRS}:num_stages=2",
    f"{PAIRS}:num_stages=2,maxnreg=255",
    f"{PAIRS}:maxnreg=255",
    f"{PAIRS}:maxnreg=168",
    "slots_adjoint_kernel:num_stages=2",
    "slots_adjoint_kernel:num_stages=3",
    "read_slots_kernel,queries_slots_kernel:num_stages=2",
    "read_slots_kernel,queries_slots_kernel:num_stages=4",
)
"""Not known yet: whether loading a pair ahead, more programs per multiprocessor or more registers per thread speed up
kernels that do without."""
ALLOWED_ERROR = 1e-2
"""Relative error allowed under other options: sums may be ordered differently, and so be rounded differently to 16
bits."""


def parsed(text: str) -> Options:
    """`kernel,kernel:option=number,option=number`.

    Raises: argparse.ArgumentTypeError for anything else.
    """
    names, colon, options = text.partition(":")
    pairs = [pair.partition("=") for pair in options.split(",")]
    if not colon or not names or not all(name and value.isdigit() for name, _, value in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not KERNEL,..:OPTION=NUMBER,.., for example keys_backward_kernel:maxnreg=168"
        )
    return {kernel: {name: int(value) for name, _, value in pairs} for kernel in names.split(",")}


@contextmanager
def launched_with(options: Options) -> Iterator[set[str]]:
    """Within the context, the kernels named are launched with these options; yields the names of those launched."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    seen: set[str] = set()

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        other = options.get(self.__name__, {})
        if other:
            seen.add(self.__name__)
        return run(self, *args, **(kwargs | other))

    JITFunction.run = launch
    try:
        yield seen
    finally:
        JITFunction.run = run


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference over all tensors."""
    errors = [(x.float() - y.float()).norm() / y.float().norm() for x, y in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()  # NaN if any of them is


def trial(step: Callable[[], list[Tensor]], options: Options, expected: list[Tensor]) -> dict[str, float] | str:
    """Milliseconds of each kernel in `options`, or what went wrong."""
    try:
        with launched_with(options) as seen:
            error = difference(step(), expected)
            unknown = sorted(set(options) - seen)
            if unknown:
                return f"no such kernel in this step: {', '.join(unknown)}"
            if not error <= ALLOWED_ERROR:
                return f"WRONG: differs by {error:.1e}"
            times = kernels_of(step)
    except Exception as error:  # does not compile, does not fit: an answer, too
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return {name: times[name][0] for name in options}


def main() -> int:
    """Times the kernels with their own options, then each trial."""
    parser = argparse.ArgumentParser(description="Time kernels with other launch options on this GPU.")
    parser.add_argument("trials", nargs="*", metavar="KERNEL,..:OPTION=NUMBER,..", help="default: the open questions")
    parser.add_argument("--shape", choices=list(SHAPES), default="mamba2")
    parser.add_argument("--slots", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=16_384)
    chosen = parser.parse_args()
    try:
        trials = {text: parsed(text) for text in chosen.trials or OPEN}
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to time", file=sys.stderr)
        return 1
    inputs = draw(SHAPES[chosen.shape], chosen.tokens, chosen.slots, TYPE)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    do = torch.randn_like(leaves["v"])

    def step() -> list[Tensor]:
        plan = segment(leaves["k"], leaves["v"], chosen.slots, 0.6, gate="straight_through")
        o, _ = multi_state_attention(**leaves, plan=plan)  # type: ignore[arg-type]
        return [o.detach(), *torch.autograd.grad(o, list(leaves.values()), do)]

    expected = step()
    before = kernels_of(step)
    if not chosen.trials:  # the open questions are asked of both rules, which have some kernels each
        trials = {text: {k: to for k, to in options.items() if k in before} for text, options in trials.items()}
    print(
        f"{torch.cuda.get_device_name()}, {chosen.shape}, M {chosen.slots}, T {chosen.tokens}: ms of a step's kernels"
    )
    for text, options in trials.items():
        print(text.partition(":")[2], flush=True)
        found = trial(step, options, expected)
        if isinstance(found, str):
            print(f"  {found}")
            continue
        for name, ms in found.items():
            print(f"  {before[name][0]:8.3f} -> {ms:8.3f}  {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
