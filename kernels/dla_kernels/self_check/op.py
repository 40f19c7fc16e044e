"""Checks the op: decisions, outputs, states, every gradient, the same bits twice, and decoding.

Decisions, gates and decoding are compared with the definition, step by step. The exact value of a read is that of the
chunked PyTorch path in float64, which the project's tests compare with the definition: the definition would keep all
states of all tokens for its backward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from dla_kernels import (
    Cache,
    Plan,
    dynamic_linear_attention,
    fenwick_plan,
    fixed_plan,
    multi_state_attention,
    segment,
    single_plan,
)
from dla_kernels.arguments import Backend
from dla_kernels.plan import JOIN
from dla_kernels.self_check.finding import OP_ROUNDINGS, Finding, allowed_of_op, compared
from dla_kernels.self_check.inputs import RUN, THRESHOLD, OpShape, draw

PlanKind = Literal["dynamic", "fenwick", "fixed", "single"]

_TOKENS = 1_100
"""More than two chunks of 512, and no multiple of any tile."""
_DOCUMENTS = (0, 5, 300, 301)
_MOST_IN_BLOCK = 64
_DECODED = 36
"""Tokens that are read one by one: in more than two runs, so that a boundary is among them."""
_NEAR = 1e-4
"""Distance of a score to the threshold within which both decisions are right."""
_DRAWS = 20
_MARGIN = 128
"""Tokens of nan before and after the inputs."""


def check_op(
    shape: OpShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    kind: PlanKind = "dynamic",
    documents: bool = False,
    tokens: int = _TOKENS,
    backend: Backend = "auto",
) -> list[Finding]:
    """Check the op on random inputs.

    Args:
        shape: sizes of the layer. device: where to compute. dtype: of q, k and v.
        kind: which plan is read; with "dynamic" its making is checked, too.
        documents: whether the tokens are packed documents.
        tokens: T. backend: whose results are checked.
    Returns:
        What was found of every result.
    """
    cu_seqlens = None
    if documents:
        cu_seqlens = torch.tensor([*(start for start in _DOCUMENTS if start < tokens), tokens], device=device)
    if kind != "dynamic":
        inputs = draw(shape, tokens, dtype, device, seed=0)
        plan = _plan_by_position(kind, shape, tokens, cu_seqlens, device, block=_block(tokens, shape.slots))
        found = _reading(inputs, plan, cu_seqlens, backend)
        return found + _decoding(shape, device, dtype, kind, tokens, backend)
    inputs, plan, sure = _sure_inputs(shape, tokens, dtype, device, cu_seqlens)
    plan = replace(plan, gate=(plan.shift != JOIN).float(), final=None)
    found = _decisions(inputs, plan, sure, cu_seqlens, backend) + _reading(inputs, plan, cu_seqlens, backend)
    if shape.slots > 1:  # one slot has no boundary
        found += _gates(shape, device, dtype, min(tokens, 300), backend)
    return found + _decoding(shape, device, dtype, kind, tokens, backend)


def _plan_by_position(
    kind: PlanKind, shape: OpShape, tokens: int, cu_seqlens: Tensor | None, device: torch.device,
    start: int | Tensor = 0, *, block: int,
) -> Plan:  # fmt: skip
    sizes = 1, tokens, shape.heads
    if kind == "single":
        return single_plan(*sizes, device=device)
    if kind == "fenwick":
        return fenwick_plan(*sizes, capacity=shape.slots, cu_seqlens=cu_seqlens, start=start, device=device)
    return fixed_plan(*sizes, block=block, capacity=shape.slots, cu_seqlens=cu_seqlens, start=start, device=device)


def _block(tokens: int, slots: int) -> int:
    """Tokens in a block of the fixed memory, so few that about half of all tokens come when all slots are in use."""
    return max(1, min(tokens // (2 * slots), _MOST_IN_BLOCK))


def _sure_inputs(
    shape: OpShape, tokens: int, dtype: torch.dtype, device: torch.device, cu_seqlens: Tensor | None = None
) -> tuple[dict[str, Tensor], Plan, Tensor]:
    """Inputs, their plan by the definition, and `[H]` bool: the heads, at least half of all, that leave no doubt about
    any decision. There is doubt where a score is at the threshold, or two pairs of slots are equally good to merge, up
    to rounding."""
    for seed in range(_DRAWS):
        inputs = draw(shape, tokens, dtype, device, seed)
        k, v = inputs["k"], inputs["v"]
        plan = segment(k, v, shape.slots, THRESHOLD, cu_seqlens, "reference")
        sure = ((plan.score - THRESHOLD).abs() > _NEAR).all(1).all(0)
        noise = torch.Generator().manual_seed(seed)
        for _ in range(2):
            nudged = segment(_nudged(k, noise), _nudged(v, noise), shape.slots, THRESHOLD, cu_seqlens, "reference")
            sure &= (nudged.shift == plan.shift).all(1).all(0)
        if 2 * sure.sum() >= shape.heads:
            return inputs, plan, sure
    raise RuntimeError(f"{_DRAWS} draws of {shape} leave doubt about decisions in most heads")


def _nudged(x: Tensor, noise: torch.Generator) -> Tensor:
    """`x`, off by what rounding in float32 may come to."""
    factor = 1 + 4e-6 * torch.randn(x.shape, generator=noise, dtype=torch.float64)
    return x.double() * factor.to(x.device)


def _decisions(
    inputs: dict[str, Tensor], exact: Plan, sure: Tensor, cu_seqlens: Tensor | None, backend: Backend
) -> list[Finding]:
    k, v = (_between_nan(inputs[name]) for name in ("k", "v"))
    found = segment(k, v, exact.capacity, THRESHOLD, cu_seqlens, backend)
    scores = (found.score - exact.score)[..., sure].abs().max().item()
    others = int((found.shift != exact.shift)[..., sure].sum())
    return [
        Finding(what="scores (largest difference)", error=scores, allowed=_NEAR),
        Finding(what="decisions (how many differ)", error=others, allowed=0),
    ]


def _reading(inputs: dict[str, Tensor], plan: Plan, cu_seqlens: Tensor | None, backend: Backend) -> list[Finding]:
    dtype, tokens = inputs["v"].dtype, inputs["v"].shape[1]
    exact = _results({name: x.double() for name, x in inputs.items()}, plan, cu_seqlens, "torch")
    found = _results(inputs, plan, cu_seqlens, backend)
    again = _results(inputs, plan, cu_seqlens, backend)
    # A gate that nothing depends on: if the exact value is nothing, the error counts absolutely.
    exact = {name: torch.where(x.abs() < 1e-12, 0.0, x) for name, x in exact.items()}
    return [
        *(
            finding
            for name, x in found.items()
            for finding in compared(
                name, x, exact[name], allowed_of_op(name, dtype, tokens), int(x.dim() > 3), OP_ROUNDINGS[dtype]
            )
        ),
        Finding(
            what="results that a second call changes (how many)",
            error=sum(not torch.equal(x, again[name]) for name, x in found.items()),
            allowed=0,
        ),
    ]


def _between_nan(x: Tensor) -> Tensor:
    """`x` `[1, T, ...]` with nan before and after it in memory, where a kernel that reads too far finds it."""
    room = x.new_full((x.shape[1] + 2 * _MARGIN, *x.shape[2:]), float("nan"))
    middle = room[_MARGIN:-_MARGIN].unsqueeze(0)
    middle.copy_(x.detach())
    return middle


def _results(inputs: dict[str, Tensor], plan: Plan, cu_seqlens: Tensor | None, backend: Backend) -> dict[str, Tensor]:
    """Output, final states and all gradients of one read."""
    leaves = {name: _between_nan(x).requires_grad_() for name, x in inputs.items()}
    if plan.gate is not None:
        wide = torch.float64 if inputs["v"].dtype == torch.float64 else torch.float32
        leaves["gate"] = _between_nan(plan.gate.to(wide)).requires_grad_()
    o, cache = multi_state_attention(
        *(leaves[name] for name in ("q", "k", "v", "slot_weight")),
        plan=replace(plan, gate=leaves.get("gate")),
        log_decay=leaves["log_decay"],
        beta=leaves.get("beta"),
        cu_seqlens=cu_seqlens,
        return_cache=True,
        backend=backend,
    )
    assert cache is not None
    states = cache.state_by_age()
    generator = torch.Generator().manual_seed(1)

    def product(x: Tensor) -> Tensor:
        factor = torch.randn(x.shape, generator=generator).to(torch.bfloat16)
        return (x.double() * factor.to(x.device)).sum()

    gradients = torch.autograd.grad(product(o) + product(states), list(leaves.values()), materialize_grads=True)
    named = {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {"output": o.detach(), "states": states.detach(), **named}


def _gates(shape: OpShape, device: torch.device, dtype: torch.dtype, tokens: int, backend: Backend) -> list[Finding]:
    """The gradient through boundaries."""
    inputs, _, sure = _sure_inputs(shape, tokens, dtype, device)
    results = []
    for chosen in ("reference", backend):
        wide = torch.float64 if chosen == "reference" else dtype
        k, v = (inputs[name].detach().to(wide).requires_grad_() for name in ("k", "v"))
        tau = torch.full((shape.heads,), THRESHOLD, device=device, requires_grad=True)
        plan = segment(k, v, shape.slots, tau, backend=chosen, gate="straight_through")
        assert plan.gate is not None
        factor = torch.arange(plan.gate.numel(), device=device).view_as(plan.gate).sin() * sure
        results.append(torch.autograd.grad((plan.gate * factor).sum(), (k, v, tau)))
    allowed = 1e-3 + 4 * torch.finfo(dtype).eps
    names = "k", "v", "threshold"
    return [
        finding
        for name, exact, x in zip(names, *results, strict=True)
        for finding in compared(f"d {name} through boundaries", x, exact, allowed, int(x.dim() > 3))
    ]


@torch.no_grad()
def _decoding(
    shape: OpShape, device: torch.device, dtype: torch.dtype, kind: PlanKind, tokens: int, backend: Backend
) -> list[Finding]:
    """Token after token behind a prompt that fills all slots, against one call of the definition."""
    tokens = min(tokens, RUN * (shape.slots + 1) + _DECODED)
    block = _block(tokens, shape.slots)
    if kind == "dynamic":
        inputs, _, sure = _sure_inputs(shape, tokens, dtype, device)
    else:
        inputs, sure = draw(shape, tokens, dtype, device, seed=0), torch.ones(shape.heads, dtype=torch.bool)

    def read(given: dict[str, Any], cache: Cache | None, backend: Backend) -> tuple[Tensor, Cache | None]:
        if kind == "dynamic":
            return dynamic_linear_attention(
                **given, capacity=shape.slots, threshold=THRESHOLD, cache=cache, return_cache=True, backend=backend
            )
        start = 0 if cache is None else cache.tokens
        plan = _plan_by_position(kind, shape, given["v"].shape[1], None, device, start, block=block)
        return multi_state_attention(**given, plan=plan, cache=cache, return_cache=True, backend=backend)

    whole, _ = read({name: x.float() for name, x in inputs.items()}, None, "reference")
    prompt = max(tokens - _DECODED, tokens // 2)
    cache, outputs = None, []
    for begin, end in (*([(0, prompt)] if prompt else []), *((t, t + 1) for t in range(prompt, tokens))):
        piece = {name: x[:, begin:end] for name, x in inputs.items()}
        o, cache = read(piece, None if cache is None else cache.donated(), backend)
        outputs.append(o)
    found = torch.cat(outputs, 1)[:, :, sure]
    return compared("output token by token", found, whole[:, :, sure], OP_ROUNDINGS[dtype], 1)
