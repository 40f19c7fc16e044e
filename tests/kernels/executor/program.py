"""One program of a launch, and its asynchronous operations.

These are completed as late as the code allows: a copy to shared memory when it is waited for, until when that memory
counts as unwritten; a product of tensor cores when it is waited for, from what shared memory holds by then. So a
missing wait, or a buffer reused too early, gives wrong numbers here every time, not once in a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.kernels.executor.memory import ExecutionFault, Memory, poisoned
from tests.kernels.executor.values import Array, product


class Unfinished:
    """A product that tensor cores are still computing: until it is waited for, only another product may read it."""

    def __init__(self, finish: Callable[[], Array]) -> None:
        self._finish = finish
        self.value: Array | None = None

    def finish(self) -> Array:
        if self.value is None:
            self.value = self._finish()
        return self.value


@dataclass
class Barrier:
    """A barrier counts how often it was completed; a wait names the parity of the completion that it waits for."""

    completed: int = 0


class Program:
    """The operations that the Python code of one program calls. number: the program's place in the grid of size
    `grid`."""

    def __init__(self, memory: Memory, number: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
        self.x, self.y, self.z = number
        self.grid = grid
        self.load, self.store = memory.load, memory.store
        self._copies: list[Callable[[], None]] = []
        self._groups: list[list[Callable[[], None]]] = []
        self._products: list[Unfinished] = []
        self._barriers: dict[int, Barrier] = {}
        self._queue: list[tuple[Callable[[], None], list[Barrier]]] = []

    def copy(self, pointer: Array, buffer: Array, mask: Array | None, other: Array | None, element: str) -> None:
        """`ttg.async_copy_global_to_local`."""
        poisoned(buffer)

        def arrive() -> None:
            buffer[...] = self.load(pointer, mask, other, element)

        self._copies.append(arrive)

    def commit(self) -> None:
        """`ttg.async_commit_group`: groups the copies since the last one."""
        self._groups.append(self._copies)
        self._copies = []

    def wait(self, left: int) -> None:
        """`ttg.async_wait`: waits until only that many groups are pending."""
        while len(self._groups) > left:
            for arrive in self._groups.pop(0):
                arrive()

    # Hopper: the product of factors in shared memory becomes a value.

    def multiply(self, a: Array, b: Array, c: Any, *, tf32: bool, waits: bool) -> Any:
        """`ttng.warp_group_dot`: `a b + c`; c may be a pending product."""

        def finish() -> Array:
            return product(a, b, c.finish() if isinstance(c, Unfinished) else c, tf32)

        if waits:
            self.wait_for_products(0)
            return finish()
        self._products.append(Unfinished(finish))
        return self._products[-1]

    def wait_for_products(self, left: int, *given: Any) -> tuple[Any, ...]:
        """`ttng.warp_group_dot_wait`: waits until only that many are pending; returns the given products, computed if
        they are complete."""
        while len(self._products) > left:
            self._products.pop(0).finish()
        return tuple(x.value if isinstance(x, Unfinished) and x.value is not None else x for x in given)

    # Blackwell: products go to tensor memory in the order in which they were issued, and barriers signal their
    # completion.

    def init_barrier(self, at: Array) -> None:
        """`ttng.init_barrier`, for a barrier that one arrival completes."""
        self._barriers[_place(at)] = Barrier()

    def invalidate_barrier(self, at: Array) -> None:
        """`ttng.inval_barrier`: no pending operation may still arrive there."""
        gone = self._barriers.pop(_place(at))
        if any(gone is barrier for _, barriers in self._queue for barrier in barriers):
            raise ExecutionFault("a barrier is given up while a product is under way that would arrive there")

    def multiply_into(
        self, a: Array, b: Array, out: Array, adds: bool, issued: bool, *arrives: Any, tf32: bool
    ) -> None:
        """`ttng.tc_gen5_mma`: `out = a b` or `out += a b`; `arrives`: barriers and their conditions."""

        def finish() -> None:
            out[...] = product(a, b, out if adds else 0, tf32)

        if issued:
            pairs = zip(arrives[: len(arrives) // 2], arrives[len(arrives) // 2 :], strict=True)
            self._queue.append((finish, [self._barriers[_place(at)] for at, arriving in pairs if arriving]))

    def wait_barrier(self, at: Array, parity: int, waits: bool = True) -> None:
        """`ttng.wait_barrier`: waits until the completion with that parity."""
        barrier = self._barriers[_place(at)]
        while waits and barrier.completed & 1 == parity:
            if not self._queue:
                raise ExecutionFault("waits for ever: no product is under way that would arrive at the barrier")
            finish, barriers = self._queue.pop(0)
            finish()
            for arrived in barriers:
                arrived.completed += 1


def _place(barrier: Array) -> int:
    return barrier.__array_interface__["data"][0]
