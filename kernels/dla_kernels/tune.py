"""Finds good tile sizes on the GPU of this machine: `python -m dla_kernels.tune --layer 128,64,30`.

Nothing is tuned automatically: run this once per GPU and layer shape. The search starts from the sizes that the
built-in rule gives and changes one size at a time. A change stays if it makes forward and backward together faster; a
round without one ends the search. A candidate counts only if its output and gradients agree with those of the torch
backend in float32, so a miscompiled one cannot win. Each layer's sizes go to the table `--out` as soon as they are
found, so an interrupted run can be started again and goes on. The default is the shipped table; the op reads another
one if DLA_KERNELS_TILES names it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import triton
from torch import Tensor

from dla_kernels import multi_state_attention, segment
from dla_kernels.arguments import Backend
from dla_kernels.plan import Plan
from dla_kernels.reader.fused import configs
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.measured import ALLOWED, SHIPPED, Layer, architecture_of, read_table, write_table

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROUNDINGS, FLOOR = 4, 1e-4
"""The relative error (root mean square) that a result may have: 4 times the epsilon of its type, but at least 1e-4."""
GAIN = 0.02
"""A change is kept only if it saves this fraction of the time: less is noise."""


def tune(
    first: Tiles, seconds: Callable[[Tiles], float], candidates: Callable[[Tiles], Iterator[Tiles]]
) -> tuple[Tiles, float]:
    """The fastest sizes found by changing one at a time, and their time.

    Args:
        first: where to begin. seconds: the time of one choice, `inf` if it does not work.
        candidates: the neighbors of a choice.
    """
    known = {first: seconds(first)}
    best = first
    while True:
        before = best
        for choice in candidates(before):
            if choice not in known:
                known[choice] = seconds(choice)
            if known[choice] < (1 - GAIN) * known[best]:
                best = choice
        if best == before:
            return best, known[best]


def neighbours(tiles: Tiles, layer: Layer) -> Iterator[Tiles]:
    """Choices that differ in one size by one step, within what the kernels take and the layer needs."""
    for name, values in ALLOWED.items():
        at = values.index(getattr(tiles, name))
        for value in values[max(0, at - 1) : at + 2]:
            found = replace(tiles, **{name: value})
            useless = found.block_k >= 2 * layer.key_dim or found.block_v >= 2 * layer.value_dim
            if found != tiles and found.long % found.tile == 0 and not useless:
                yield found


def draw(layer: Layer, heads: int, tokens: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the op by name, and the gradient of its output. Neighboring tokens are alike, as in real segments."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = TYPES[layer.type]

    def normal(size: int) -> Tensor:
        coarse = torch.randn(1, -(-tokens // 16), heads, size, device=device, generator=generator)
        noise = torch.randn(1, tokens, heads, size, device=device, generator=generator)
        return coarse.repeat_interleave(16, 1)[:, :tokens] + 0.15 * noise

    def uniform(*size: int) -> Tensor:
        return torch.rand(1, tokens, heads, *size, device=device, generator=generator)

    inputs = {
        "q": normal(layer.key_dim), "k": torch.nn.functional.normalize(normal(layer.key_dim), dim=-1),
        "v": normal(layer.value_dim), "slot_weight": 0.5 + uniform(layer.slots), "log_decay": -0.1 * uniform(),
    }  # fmt: skip
    if layer.delta:
        inputs["beta"] = uniform()
    inputs = {name: x if name == "log_decay" else x.to(dtype) for name, x in inputs.items()}
    return inputs, normal(layer.value_dim).to(dtype)


class Trial:
    """Times choices for one layer shape on one device, each checked before it is timed."""

    def __init__(self, layer: Layer, heads: int, tokens: int, device: torch.device, repeats: int) -> None:
        self.layer, self.device, self.repeats = layer, device, repeats
        self.timed = self._case(heads, tokens)
        self.checked = self._case(heads, min(tokens, 1040))  # not a multiple of any size
        self.exact = _run(*self.checked, "torch")
        self.failures: dict[Tiles, str] = {}

    def seconds(self, tiles: Tiles) -> float:
        """Median time of forward and backward with the hard gate; if they fail, `inf`, and `failures` says why."""
        try:
            with configs.override(**asdict(tiles)):
                error = self._error()
                if not error <= max(FLOOR, ROUNDINGS * torch.finfo(TYPES[self.layer.type]).eps):
                    raise ArithmeticError(f"relative error {error:.1e}")
                return self._time()
        except Exception as error:  # does not compile, does not fit, is wrong: all the same to the search
            self.failures[tiles] = f"{type(error).__name__}: {str(error)[:160]}"
            return math.inf

    def _error(self) -> float:
        found = _run(*self.checked, "triton")
        return max(
            ((x.float() - y.float()).norm() / y.float().norm()).item() for x, y in zip(found, self.exact, strict=True)
        )

    def _time(self) -> float:
        times = []
        for _ in range(self.repeats + 1):
            begin = clock.perf_counter()
            _run(*self.timed, "triton")
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(clock.perf_counter() - begin)
        return statistics.median(times[1:])  # the first one compiles

    def _case(self, heads: int, tokens: int) -> tuple[dict[str, Tensor], Tensor, Plan]:
        """Inputs, the gradient of the output, and a plan, whose kernels always use the rule's sizes."""
        inputs, do = draw(self.layer, heads, tokens, self.device)
        return inputs, do, segment(inputs["k"], inputs["v"], self.layer.slots, 0.6, backend="triton")


def _run(inputs: dict[str, Tensor], do: Tensor, plan: Plan, backend: Backend) -> list[Tensor]:
    """o and the gradients of the inputs; the torch backend computes in float32."""
    dtype = torch.float32 if backend == "torch" else None
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()}
    o, _ = multi_state_attention(**leaves, plan=plan, backend=backend)  # type: ignore[arg-type]
    return [o.detach(), *torch.autograd.grad(o, list(leaves.values()), do.to(o.dtype))]


def _layer(text: str) -> tuple[int, int, int]:
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not K,V,M: key dim, value dim and slots, for example 128,64,30")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def main(arguments: list[str] | None = None) -> int:
    """Tunes the requested layers that the table does not have yet, and writes the table after each."""
    parser = argparse.ArgumentParser(prog="python -m dla_kernels.tune", description="Find good tile sizes on this GPU.")
    parser.add_argument(
        "--layer", type=_layer, nargs="+", required=True, metavar="K,V,M", help="key dim, value dim, slots"
    )
    parser.add_argument("--delta", action="store_true", help="the gated delta rule, in place of plain decay")
    parser.add_argument("--type", choices=list(TYPES), default="bfloat16")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each choice")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the table (default: the shipped one)")
    parser.add_argument("--anew", action="store_true", help="tune also what the table already has")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU: there is nothing to tune for", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    architecture = architecture_of(device)
    assert architecture is not None
    rows = read_table(chosen.out) if chosen.out.exists() else []
    for key_dim, value_dim, slots in chosen.layer:
        layer = Layer(key_dim=key_dim, value_dim=value_dim, slots=slots, type=chosen.type, delta=chosen.delta)
        if any(row[:2] == (architecture, layer) for row in rows) and not chosen.anew:
            print(f"{layer}: in {chosen.out} already; --anew measures it again")
            continue
        trial = Trial(layer, chosen.heads, chosen.tokens, device, chosen.repeats)
        first = configs.tiles_for(
            key_dim, value_dim, slots, TYPES[chosen.type], torch.device("cpu"), delta=chosen.delta
        )
        best, seconds = tune(first, trial.seconds, lambda tiles, layer=layer: neighbours(tiles, layer))
        for tiles, reason in trial.failures.items():
            print(f"  left out {tiles}: {reason}", file=sys.stderr)
        if math.isinf(seconds):
            print(f"{layer}: no choice works, not even the rule's own; nothing is written", file=sys.stderr)
            return 1
        note = {
            "gpu": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__,
            "heads": chosen.heads, "tokens": chosen.tokens, "seconds": seconds, "rule_seconds": trial.seconds(first),
        }  # fmt: skip
        rows = [row for row in rows if row[:2] != (architecture, layer)]
        rows.append((architecture, layer, asdict(best), note))
        write_table(chosen.out, rows)
        print(f"{layer}: {best}, {1e3 * seconds:.2f} ms; by rule {1e3 * note['rule_seconds']:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
