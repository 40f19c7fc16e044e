"""Arithmetic of a GPU on NumPy values.

Integers of tensors are signed arrays of their width, scalars are `int`; i1 is bool. All floats are held as float32, and
rounded to their own type when they are computed: bf16 and fp16 are subsets of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ARRAYS: dict[str, type[np.generic]] = {
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "f16": np.float32, "bf16": np.float32, "f32": np.float32,
}  # fmt: skip
"""The NumPy type that holds numbers of a type. Pointers are held as i64."""


def wrapped(x: int, bits: int) -> int:
    """The signed number of that many bits that equals `x` modulo 2^bits."""
    half = 1 << (bits - 1)
    return ((x + half) & (2 * half - 1)) - half


def unsigned(x: Any, bits: int) -> Any:
    """The same bits as an unsigned number."""
    if isinstance(x, np.ndarray):
        return x if bits == 1 else x.view(f"u{x.itemsize}")
    return int(x) & ((1 << bits) - 1)


def divided(a: Any, b: Any) -> Any:
    """The quotient rounded towards zero, as in C; by zero it is arbitrary, here 0."""
    if isinstance(a, np.ndarray):
        quotient = a // b
        return quotient + ((quotient * b != a) & ((a < 0) != (b < 0)))
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: Any, b: Any) -> Any:
    """The remainder of `divided`, with the sign of `a`."""
    return np.fmod(a, b) if isinstance(a, np.ndarray) else a - divided(a, b) * b


def _bits(x: Any) -> Array:
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)


def _like(bits: Array, x: Any) -> Any:
    rounded = bits.view(np.float32).reshape(np.shape(x))
    return rounded if isinstance(x, np.ndarray) else rounded[()]


def to_bf16(x: Any) -> Any:
    """Rounded to the nearest, ties to even."""
    bits = _bits(x)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return _like(np.where((bits & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x7FC00000), rounded), x)


def to_f16(x: Any) -> Any:
    """Rounded to the nearest, ties to even."""
    return _like(_bits(np.asarray(x).astype(np.float16)), x)


def to_f32(x: Any) -> Any:
    """Unchanged: floats are held as float32."""
    return x


ROUNDED: dict[str, Callable[[Any], Any]] = {"bf16": to_bf16, "f16": to_f16, "f32": to_f32}


def rounded_to_tf32(x: Any) -> Any:
    """`cvt.rna.tf32.f32`: to the nearest with a mantissa of 10 bits, ties away from zero."""
    return _like((_bits(x) + 0x1000) & np.uint32(0xFFFFE000), x)


def _read_as_tf32(x: Array) -> Array:
    """Tensor cores ignore the lower 13 bits of a float32."""
    return _like(_bits(x) & np.uint32(0xFFFFE000), x)


def product(a: Array, b: Array, c: Array, tf32: bool) -> Array:
    """`a b + c`, summed in float32."""
    return (_read_as_tf32(a) @ _read_as_tf32(b) if tf32 else a @ b) + c


def _flushed(x: Any) -> Any:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def rsqrt(x: Any) -> Any:
    """As GPUs approximate it: numbers below the normal ones count as zero."""
    return np.float32(1) / np.sqrt(_flushed(x))


def sqrt(x: Any) -> Any:
    """As GPUs approximate it: numbers below the normal ones count as zero."""
    return np.sqrt(_flushed(x))


def bitcast(x: Any, given: str, wanted: str) -> Any:
    """The same bits as another type."""
    half = {"bf16": 16, "f16": 16}
    array = np.ascontiguousarray(x)
    if given == "bf16":
        array = (_bits(array) >> 16).astype(np.uint16)
    elif given == "f16":
        array = array.astype(np.float16)
    if wanted == "bf16":
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif wanted in half:
        array = array.view(np.float16).astype(np.float32)
    else:
        array = array.view(ARRAYS[wanted])
    return array.reshape(np.shape(x)) if isinstance(x, np.ndarray) else array.reshape(-1)[0].item()


def gathered(source: Array, index: Array, axis: int) -> Array:
    """`source` at `index` along an axis."""
    if index.size and (index.min() < 0 or index.max() >= source.shape[axis]):
        raise IndexError(f"tt.gather from {index.min()} to {index.max()} of {source.shape[axis]}")
    return np.take_along_axis(source, index.astype(np.int64), axis)


def reordered(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` in another shape, where any order of the elements is allowed; this one is deliberately not the obvious
    one."""
    return x.reshape(-1)[::-1].reshape(shape)


Combine = Callable[..., tuple[Any, ...]]


def reduced(given: Sequence[Array], axis: int, combine: Combine) -> tuple[Any, ...]:
    """Everything along an axis combined, pair by pair."""
    parts = tuple(np.moveaxis(x, axis, 0) for x in given)
    while (n := len(parts[0])) > 1:
        half = n // 2
        assert n == 2 * half, "axes of tensors are powers of two"
        parts = combine(*(x[:half] for x in parts), *(x[half:] for x in parts))
    return tuple(x[0] if x[0].ndim else x[0].item() if x.dtype.kind != "f" else x[0] for x in parts)


def scanned(given: Sequence[Array], axis: int, reverse: bool, combine: Combine) -> tuple[Array, ...]:
    """Running combinations along an axis, by doubling."""
    step = -1 if reverse else 1
    parts = tuple(np.moveaxis(x, axis, 0)[::step].copy() for x in given)
    reach = 1
    while reach < len(parts[0]):
        further = combine(*(x[:-reach] for x in parts), *(x[reach:] for x in parts))
        parts = tuple(np.concatenate((x[:reach], y)) for x, y in zip(parts, further, strict=True))
        reach *= 2
    return tuple(np.moveaxis(x[::step], 0, axis) for x in parts)
