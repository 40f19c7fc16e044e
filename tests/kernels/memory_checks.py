"""A memcheck and a racecheck without a GPU: checks every address that interpreted kernels touch.

The interpreter runs the programs of a launch one after the other and reads whatever address it is given. So a mask that
lets too much through, or a program that relies on what another one writes, gives correct results there, but wrong ones,
or none, on a GPU. Within `checking_memory()`, each tensor of a launch lies between two guards, and these are errors:

* an address outside the launch's tensors;
* one address written by two programs of a launch, or written by one and read by another: programs have no order;
* one address written twice by a program, or read after the program has written it, without a barrier between: its
  threads have no order either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

GUARD = 1 << 16
"""Bytes before and after each tensor."""
NOBODY, SEVERAL = -1, -2
BARRIERS = 1 << 24
"""More barriers than a program has. A writer is recorded as its program's number times this, plus the barriers that it
had passed."""


class MemoryFault(AssertionError):
    """A kernel touched memory that it must not touch."""


@dataclass
class Allocation:
    """A tensor's memory during a launch: where it is, and which program wrote and read each of its elements."""

    name: str
    memory: torch.Tensor
    source: torch.Tensor
    size: int  # bytes of an element
    writer: np.ndarray[Any, np.dtype[np.int64]]
    reader: np.ndarray[Any, np.dtype[np.int64]]
    scratch: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def begin(self) -> int:
        return self.memory.data_ptr() + GUARD


class Launch:
    """The tensors of a launch, and the rules that its programs must follow."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.program = 0
        self.barriers = 0
        self.allocations: dict[int, Allocation] = {}

    def guarded(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The same view of a copy that lies between guards; tensors that share memory share the copy."""
        storage = x.untyped_storage()
        size = x.element_size()
        if storage.data_ptr() not in self.allocations:
            source = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
            memory = torch.zeros(storage.nbytes() + 2 * GUARD, dtype=torch.uint8)
            memory[GUARD:-GUARD].copy_(source)
            marks = (np.full(storage.nbytes() // size, NOBODY, dtype=np.int64) for _ in range(3))
            self.allocations[storage.data_ptr()] = Allocation(name, memory, source, size, *marks)
        allocation = self.allocations[storage.data_ptr()]
        assert allocation.size == size, f"'{name}' and '{allocation.name}' share memory as different types"
        offset = x.storage_offset() + GUARD // size
        return torch.empty(0, dtype=x.dtype).set_(allocation.memory.untyped_storage(), offset, x.shape, x.stride())  # type: ignore[arg-type]

    def copy_back(self) -> None:
        for allocation in self.allocations.values():
            allocation.source.copy_(allocation.memory[GUARD:-GUARD])

    def _touched(self, kind: str, addresses: np.ndarray[Any, Any]) -> Iterator[tuple[Allocation, Any]]:
        """The allocations that the addresses lie in, with the indices of the touched elements."""
        left = addresses.size
        for allocation in self.allocations.values():
            if not left:
                return
            at = addresses - allocation.begin
            inside = (at >= 0) & (at < len(allocation.writer) * allocation.size)
            if found := int(np.count_nonzero(inside)):
                left -= found
                yield allocation, (at if found == at.size else at[inside]) // allocation.size
        if left:
            self._fault(f"{left} of {addresses.size} addresses of a {kind} are in no tensor of the launch")

    def read(self, addresses: np.ndarray[Any, Any]) -> None:
        for allocation, at in self._touched("load", addresses):
            self._after_writers(allocation, at, "reads")
            reader = allocation.reader[at]
            allocation.reader[at] = np.where((reader == NOBODY) | (reader == self.program), self.program, SEVERAL)

    def write(self, addresses: np.ndarray[Any, Any]) -> None:
        for allocation, at in self._touched("store", addresses):
            number = np.arange(at.size)
            allocation.scratch[at] = number
            if (allocation.scratch[at] != number).any():
                self._fault(f"one store writes a place of '{allocation.name}' twice")
            self._after_writers(allocation, at, "writes")
            reader = allocation.reader[at]
            if ((reader != NOBODY) & (reader != self.program)).any():
                self._fault(f"writes '{allocation.name}' where another program of the same launch reads")
            allocation.writer[at] = self.program * BARRIERS + self.barriers

    def _after_writers(self, allocation: Allocation, at: Any, does: str) -> None:
        writer = allocation.writer[at]
        if not (found := writer != NOBODY).any():
            return
        writer = writer[found]
        if (writer == self.program * BARRIERS + self.barriers).any():
            self._fault(f"{does} '{allocation.name}' where it has written before, without a barrier between")
        others = writer[writer // BARRIERS != self.program]
        if len(others):
            self._fault(f"{does} '{allocation.name}' where program {others[0] // BARRIERS} of the same launch writes")

    def _fault(self, what: str) -> None:
        raise MemoryFault(f"{self.kernel}, program {self.program}: {what}")


@contextmanager
def checking_memory() -> Iterator[set[str]]:
    """Check all kernels that are interpreted within the context; yields the names of those that ran."""
    from triton.language import int1
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

    launches: list[Launch] = []
    ran: set[str] = set()
    call, load, store = (
        GridExecutor.__call__,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )
    set_program, barrier = InterpreterBuilder.set_grid_idx, InterpreterBuilder.create_barrier

    def checked_call(self: Any, *arguments: Any, **options: Any) -> None:
        launch = Launch(self.fn.__name__)
        ran.add(launch.kernel)
        names = [*self.arg_names[: len(arguments)], *options]
        given = [
            launch.guarded(name, x) if isinstance(x, torch.Tensor) else x
            for name, x in zip(names, [*arguments, *options.values()], strict=True)
        ]
        launches.append(launch)
        try:
            call(self, *given[: len(arguments)], **dict(zip(options, given[len(arguments) :], strict=True)))
        except Exception as error:
            fault = error.__cause__
            raise fault if isinstance(fault, MemoryFault) else error from None
        finally:
            launches.pop()
        launch.copy_back()

    def checked_program(self: Any, x: int, y: int, z: int) -> None:
        _, rows, columns = self.grid_dim
        launches[-1].program, launches[-1].barriers = (x * rows + y) * columns + z, 0
        set_program(self, x, y, z)

    def counted_barrier(self: Any, *rest: Any) -> Any:
        launches[-1].barriers += 1
        return barrier(self, *rest)

    def touched(pointers: Any, mask: Any) -> np.ndarray[Any, Any]:
        addresses = np.asarray(pointers.data).astype(np.int64)
        return addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]

    def of_bits(mask: Any) -> Any:
        """A scalar that was compared is a number in the interpreter of Triton 3.9, which then refuses it as a mask."""
        return mask if mask.data.dtype == bool else TensorHandle(mask.data.astype(bool), int1)

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].read(touched(pointers, mask))
        return load(self, pointers, of_bits(mask), *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].write(touched(pointers, mask))
        return store(self, pointers, value, of_bits(mask), *rest)

    with _patched(
        (GridExecutor, "__call__", checked_call),
        (InterpreterBuilder, "set_grid_idx", checked_program),
        (InterpreterBuilder, "create_barrier", counted_barrier),
        (InterpreterBuilder, "create_masked_load", checked_load),
        (InterpreterBuilder, "create_masked_store", checked_store),
    ):
        yield ran


@contextmanager
def _patched(*replacements: tuple[type, str, Any]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, value in replacements:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
