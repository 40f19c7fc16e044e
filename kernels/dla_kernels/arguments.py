"""Checks of what a caller passes to the op: every message names the argument, what was given and what is allowed."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor

from dla_kernels.compiled_graphs import constant_in_compiled_graphs
from dla_kernels.documents import ends_of

Backend = Literal["auto", "reference", "torch", "triton"]
BACKENDS: tuple[str, ...] = ("auto", "reference", "torch", "triton")
GateKind = Literal["hard", "straight_through"]
GATES: tuple[str, ...] = ("hard", "straight_through")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)
"""The oldest NVIDIA compute capability for which the Triton kernels compile and fit: Ampere."""


def check_keys_values(k: Tensor, v: Tensor) -> None:
    """Checks that `k` `[B, T, G, K]` and `v` `[B, T, H, V]` fit together."""
    _check_float("k", k, 4, "[B, T, G, K]")
    _check_float("v", v, 4, "[B, T, H, V]")
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(f"v has batch and time {tuple(v.shape[:2])}; k has {tuple(k.shape[:2])}; they must be equal")
    for name, x, dimension, what in (("k", k, 1, "tokens"), ("k", k, 2, "groups"), ("k", k, 3, "channels"),
                                     ("v", v, 2, "heads"), ("v", v, 3, "channels")):  # fmt: skip
        if x.shape[dimension] < 1:
            raise ValueError(f"{name} has no {what} (its shape is {tuple(x.shape)}); at least one is needed")
    if v.shape[2] % k.shape[2]:
        raise ValueError(
            f"the number of v's heads, {v.shape[2]}, must be a multiple of the number of k's groups, {k.shape[2]}"
        )
    if k.device != v.device:
        raise ValueError(f"v is on {v.device} and k on {k.device}; they must be on one device")
    if v.device.type == "meta":
        raise ValueError("k and v are on meta; the op needs their numbers, as it decides by them where a slot begins")


def check_reader(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, log_decay: Tensor | None, beta: Tensor | None
) -> None:
    """Checks all inputs of the reader; shapes as in `multi_state_attention`."""
    check_keys_values(k, v)
    _check_float("q", q, 4, "[B, T, G, K]")
    if q.shape != k.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be the shape of k, {tuple(k.shape)}")
    _check_float("slot_weight", slot_weight, 4, "[B, T, H, M]")
    if slot_weight.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"slot_weight has shape {tuple(slot_weight.shape)}; "
            f"its first three sizes must be those of v, {tuple(v.shape[:3])}"
        )
    for name, x in (("log_decay", log_decay), ("beta", beta)):
        if x is not None:
            _check_float(name, x, 3, "[B, T, H]")
            if x.shape != v.shape[:3]:
                raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(v.shape[:3])} ([B, T, H])")
    for name, x in (("q", q), ("slot_weight", slot_weight), ("log_decay", log_decay), ("beta", beta)):
        if x is not None and x.device != v.device:
            raise ValueError(f"{name} is on {x.device} and v on {v.device}; they must be on one device")


def check_documents(cu_seqlens: Tensor | None, batch: int, time: int) -> None:
    """Checks that `cu_seqlens` `[N + 1]` cuts `[1, T]` into documents of at least one token."""
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor):
        raise ValueError(
            f"cu_seqlens is of type {type(cu_seqlens).__name__}; it must be a tensor, a vector of N + 1 >= 2 int32 or "
            "int64 numbers"
        )
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens has shape {tuple(cu_seqlens.shape)} and type {cu_seqlens.dtype}; "
            "it must be a vector of N + 1 >= 2 int32 or int64 numbers"
        )
    if batch != 1:
        raise ValueError(f"cu_seqlens was given with a batch of {batch}; packed documents need a batch of 1")
    ends = ends_of(cu_seqlens)
    if ends[0] != 0 or ends[-1] != time:
        raise ValueError(f"cu_seqlens runs from {ends[0]} to {ends[-1]}; it must run from 0 to {time}, the time of k")
    if any(b <= a for a, b in pairwise(ends)):
        raise ValueError(
            f"cu_seqlens is {list(ends) if len(ends) < 12 else '...'}; it must grow at every step (no empty document)"
        )


def check_capacity(capacity: int) -> None:
    """Checks that there is at least one slot."""
    if not isinstance(capacity, Integral) or capacity < 1:
        raise ValueError(f"capacity is {capacity!r}; it must be a whole number of at least 1")


def check_gate(gate: str, width: float) -> None:
    """Checks the two arguments `gate` and `gate_width`."""
    if gate not in GATES:
        raise ValueError(f"gate is {gate!r}; it must be 'hard' or 'straight_through'")
    if not 0 < width < float("inf"):
        raise ValueError(f"gate_width is {width}; it must be a number above 0")


def scale_of(scale: float | None, key_dim: int) -> float:
    """The factor of the queries, `K ** -0.5` if None. Kernels take a number, and so a tensor would get no gradient."""
    if isinstance(scale, Tensor):
        raise ValueError("scale is a tensor; it must be a number. Multiply q by a tensor, and both get their gradients")
    return key_dim**-0.5 if scale is None else scale


def threshold_of(threshold: float | Tensor, heads: int, device: torch.device) -> Tensor:
    """The threshold as `[H]` float32, differentiable if given as a tensor; a number must lie in [0, 2], the score's
    range."""
    if not isinstance(threshold, Tensor):
        if not isinstance(threshold, Real) or not 0.0 <= threshold <= 2.0:
            raise ValueError(
                f"threshold is {threshold!r}; it must be a number in [0, 2], the range of the score, or a tensor "
                f"[{heads}], one per head"
            )
        return torch.full((heads,), float(threshold), dtype=torch.float32, device=device)
    if threshold.shape not in ((), (heads,)):
        raise ValueError(
            f"threshold has shape {tuple(threshold.shape)}; it must be a number or [{heads}], one per head"
        )
    if threshold.device != device and threshold.ndim:
        raise ValueError(f"threshold is on {threshold.device} and v on {device}; they must be on one device")
    return threshold.float().to(device).expand(heads)


def resolve_backend(backend: str, k: Tensor, v: Tensor, capacity: int) -> Literal["reference", "torch", "triton"]:
    """The backend to use for k `[B, T, G, K]` and v `[B, T, H, V]`.

    "auto" means "triton" for tensors on a GPU that the Triton kernels can take, and "torch" for all others (on the CPU,
    in float64, or beyond the kernels' size limits).
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return "reference"
    if backend == "torch" or (backend == "auto" and v.device.type != "cuda"):
        return "torch"
    obstacle = _obstacle_to_triton(k, v, capacity)
    if obstacle is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise ValueError(f"backend is 'triton', but {obstacle}; pass backend='torch' or 'auto'")


def torch_or_triton(backend: str, name: str, x: Tensor, obstacle: str | None = None) -> Literal["torch", "triton"]:
    """The backend of an operation beside the op proper, on `x`, which the caller knows as `name`; "auto" means what it
    does in `resolve_backend`. `obstacle` says why the kernels cannot take the inputs, if the caller knows a reason."""
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend is {backend!r}; it must be auto, torch or triton")
    if backend == "torch" or (backend == "auto" and x.device.type != "cuda"):
        return "torch"
    obstacle = obstacle or _obstacle_on(name, x.device) or _obstacle_of_type(name, x)
    if obstacle is None and not x.numel():
        obstacle = f"{name} is empty; it takes at least one number"
    if obstacle is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise ValueError(f"backend is 'triton', but {obstacle}; pass backend='torch' or 'auto'")


def _obstacle_to_triton(k: Tensor, v: Tensor, capacity: int) -> str | None:
    """Why the Triton kernels cannot take these inputs, or None."""
    obstacle = _obstacle_on("v", v.device) or _obstacle_of_type("k", k) or _obstacle_of_type("v", v)
    if obstacle is not None:
        return obstacle
    if not v.shape[0]:
        return "the batch is empty; it takes at least one sequence"
    if capacity > 64:
        return f"capacity is {capacity}; it takes up to 64 slots"
    if k.shape[3] > 256 or v.shape[3] > 512:
        return f"K is {k.shape[3]} and V {v.shape[3]}; it takes K up to 256 and V up to 512"
    return None


@constant_in_compiled_graphs
def _obstacle_on(name: str, device: torch.device) -> str | None:
    """Why no Triton kernel can run on `device`, where the argument `name` is, or None."""
    if device.type == "cuda":
        return _obstacle_on_gpu(device)
    if device.type != "cpu" or not _interpreting():
        return (
            f"{name} is on {device}; it needs a GPU (on the CPU: start Python with TRITON_INTERPRET=1, for tests only)"
        )
    return None


@cache
def _obstacle_on_gpu(device: torch.device) -> str | None:
    """The same for a GPU. Remembered, because every call of every operation asks, which generation would wait for."""
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton has no working driver here (Linux with a CUDA or ROCm GPU is needed)"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        return f"{device} is an sm_{capability[0]}{capability[1]}; it needs a GPU of sm_80 (Ampere) or later"
    return None


def _obstacle_of_type(name: str, x: Tensor) -> str | None:
    if x.dtype == torch.float64:
        return f"{name} has type {x.dtype}; it takes float32, bfloat16 and float16"
    return None


def _interpreting() -> bool:
    """Whether Triton is installed and was imported in its interpreter mode, which runs kernels on the CPU."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


def _check_float(name: str, x: Tensor, ndim: int, layout: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is of type {type(x).__name__}; it must be a tensor {layout}")
    if x.ndim != ndim:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {ndim} dimensions: {layout}")
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} has type {x.dtype}; it must be float64, float32, bfloat16 or float16")
