"""The tensors of a launch, as a kernel addresses them.

An address holds the tensor's number (in the order of the kernel's parameters, from 1) above `OFFSET` bits for the
offset in bytes into its storage, so that every access outside the storage is detected.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from tests.kernels.executor.values import ARRAYS, Array

OFFSET = 44
STORED: dict[str, type[np.generic]] = {
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "f16": np.float16, "bf16": np.uint16, "f32": np.float32,
}  # fmt: skip
"""How numbers of a type are stored in memory."""


class ExecutionFault(AssertionError):
    """A compiled kernel did something that it must not do on a GPU."""


def poison(shape: tuple[int, ...], element: str) -> Array:
    """Values for unwritten memory: NaN, or a number that no table holds."""
    return poisoned(np.empty(shape, ARRAYS[element]))


def poisoned(x: Array) -> Array:
    """An array like x with the values of unwritten memory."""
    x[...] = np.nan if x.dtype.kind == "f" else 111
    return x


class Memory:
    """Loads and stores, of single numbers or of arrays of addresses in one tensor."""

    def __init__(self) -> None:
        self._storages: list[Array] = []
        self._alive: list[torch.Tensor] = []
        self._views: dict[tuple[int, str], Array] = {}

    def address(self, x: torch.Tensor) -> int:
        """The address of the tensor's first element; its whole storage is reachable from there."""
        storage = x.untyped_storage()
        size = int(storage.nbytes())
        raw = (ctypes.c_byte * size).from_address(storage.data_ptr()) if size else b""
        self._storages.append(np.frombuffer(raw, dtype=np.uint8))
        self._alive.append(x)
        return (len(self._storages) << OFFSET) + int(x.storage_offset()) * x.element_size()

    def load(self, pointer: Any, mask: Any, other: Any, element: str) -> Any:
        """`tt.load`; where the mask is false and no other value is given, the result is arbitrary."""
        if not isinstance(pointer, np.ndarray):
            if mask is not None and not mask:
                return poison((1,), element)[0] if other is None else other
            found = self._read(np.array([pointer]), element)[0]
            return found if ARRAYS[element] is np.float32 else found.item()
        if mask is None or mask.all():
            return self._read(pointer, element)
        result = poison(pointer.shape, element) if other is None else np.array(other)
        if mask.any():
            result[mask] = self._read(pointer[mask], element)
        return result

    def store(self, pointer: Any, value: Any, mask: Any, element: str) -> None:
        """`tt.store`."""
        if not isinstance(pointer, np.ndarray):
            pointer, value = np.array([pointer]), np.array([value], ARRAYS[element])
            mask = None if mask is None else np.array([mask])
        if mask is not None:
            pointer, value = pointer[mask], value[mask]
        if pointer.size:
            numbers, at = self._found(pointer, element)
            if element == "bf16":
                value = np.ascontiguousarray(value).view(np.uint32) >> np.uint32(16)
            numbers[at] = value

    def _read(self, pointer: Array, element: str) -> Array:
        numbers, at = self._found(pointer, element)
        raw = numbers[at]
        if element == "bf16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32) if element == "f16" else raw

    def _found(self, pointer: Array, element: str) -> tuple[Array, Array]:
        """The tensor that the addresses lie in, as numbers of a type, and the indices of the addressed ones."""
        number = int(pointer.flat[0]) >> OFFSET
        if not 0 < number <= len(self._storages):
            raise ExecutionFault(f"address {int(pointer.flat[0]):#x} is in no tensor")
        if (numbers := self._views.get((number, element))) is None:
            kind = np.dtype(STORED[element])
            storage = self._storages[number - 1]
            numbers = storage[: len(storage) // kind.itemsize * kind.itemsize].view(kind)
            self._views[number, element] = numbers
        at = (pointer - (number << OFFSET)) // numbers.itemsize
        low, high = at.min(), at.max()
        if low < 0 or high >= len(numbers):
            raise ExecutionFault(f"elements {low} to {high} of a tensor of {len(numbers)}")
        return numbers, at
