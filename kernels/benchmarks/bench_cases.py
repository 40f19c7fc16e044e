"""What `bench_gpu.py` times: methods at shapes, lengths and directions, their inputs, and how each is called.

Peers: SDPA, and if `fla` can be imported, its simple_gla, gated delta rule and log-linear attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dla_kernels import Cache, dynamic_linear_attention, fenwick_plan, multi_state_attention, segment
from dla_kernels.arguments import GateKind

DEVICE, TYPE = "cuda", torch.bfloat16
LENGTHS = 16_384, 2_048, 65_536, 131_072
"""Tokens; the first is the length for which we have target times."""
OURS = "dla30", "dla15", "fenwick15"
"""Methods that run on the kernels of this project."""
CALM, DENSE = 0.15, 0.4
"""Noise of features: with CALM a segment has 16 tokens; with DENSE nearly every token opens one, as it happens if
nothing adapts the threshold of 0.6."""


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

    Directions: "forward" and "training" (with backward) read a plan made beforehand; "segment" makes a plan; "step"
    does all three, "gated step" with the straight-through gate; "decode" is one token of 16 sequences. Directions that
    begin with "dense" have a boundary at nearly every token, all others at every sixteenth.
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
        """The noise of the features."""
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
    return found + [
        Case(method=method, shape=shape, tokens=1, direction="decode")
        for shape in SHAPES
        for method in ("dla30", "dla15", "fenwick15")
    ]


def draw(
    shape: Shape, tokens: int, slots: int, dtype: torch.dtype, batch: int = 1, noise: float = CALM
) -> dict[str, Any]:
    """Inputs of the op by name. Neighboring tokens are alike, as in real segments; keys are unit vectors."""
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
    """The method's plan: by content for `dla..`, by position for `fenwick..`."""
    batch, tokens, heads, slots = inputs["slot_weight"].shape
    if method.startswith("fenwick"):
        return fenwick_plan(batch, tokens, heads, capacity=slots, device=DEVICE)
    return segment(inputs["k"], inputs["v"], slots, 0.6, gate=gate)


def _continued(method: str, inputs: dict[str, Any], cache: Cache | None) -> tuple[Tensor, Cache]:
    """The method's output, and the cache after it."""
    batch, tokens, heads, slots = inputs["slot_weight"].shape
    if method.startswith("fenwick"):
        start = 0 if cache is None else cache.tokens
        plan = fenwick_plan(batch, tokens, heads, capacity=slots, start=start, device=DEVICE)
        o, after = multi_state_attention(**inputs, plan=plan, cache=cache, return_cache=True)
    else:
        o, after = dynamic_linear_attention(**inputs, capacity=slots, cache=cache, return_cache=True)
    assert after is not None
    return o, after


def call_of(case: Case) -> Callable[[], Any] | str:
    """The call to time, or why it cannot be made."""
    shape, dtype = SHAPES[case.shape], TYPE
    slots = 30 if case.method == "dla30" else 15
    inputs = draw(shape, case.tokens, slots, dtype, noise=case.noise)
    if case.direction == "decode":
        inputs = draw(shape, 1, slots, dtype, batch=16)
        prompt = draw(shape, 512, slots, dtype, batch=16)
        _, after = _continued(case.method, prompt, None)
        cache = after.donated()

        def step() -> Any:
            nonlocal cache
            with torch.no_grad():
                o, cache = _continued(case.method, inputs, cache)
            return o

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
    """The read alone, or why it cannot be made. For our methods the plan is made beforehand; peers have none."""
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
