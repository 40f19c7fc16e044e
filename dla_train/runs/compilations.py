"""Says that Triton compiles kernels: the first step on a GPU waits for all of them, and would show nothing so long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def told_of_compilations(device: str, say: Callable[[str], None], seconds: float = 10.0) -> Iterator[None]:
    """While it lasts, `say` gets a sentence when a first kernel has been compiled, and others while it goes on. Kernels
    that an earlier start has compiled count as nothing.

    Args:
        device: the kind of device, such as `cuda`; on the CPU nothing is compiled.
        seconds: at least between sentences.
    """
    if device != "cuda":
        yield
        return
    from triton import knobs  # only there is one on every machine with a GPU

    before = knobs.compilation.listener
    knobs.compilation.listener = _Listener(before, say, seconds)
    try:
        yield
    finally:
        knobs.compilation.listener = before


class _Listener:
    """Triton calls it with every kernel that is compiled or found compiled.

    Args:
        before: the listener in whose place this one is, and which still hears everything.
    """

    def __init__(self, before: Callable[..., None] | None, say: Callable[[str], None], seconds: float) -> None:
        self._before, self._say, self._seconds = before, say, seconds
        self._kernels = 0
        self._said = 0.0

    def __call__(self, *, cache_hit: bool, **rest: Any) -> None:
        if self._before is not None:
            self._before(cache_hit=cache_hit, **rest)
        if cache_hit:
            return
        from triton import knobs

        self._kernels += 1
        now = time.monotonic()
        if self._kernels == 1:
            self._say(
                "compiling Triton kernels for this GPU, which may take minutes; the next start finds them in "
                f"{knobs.cache.dir}"
            )
        elif now - self._said < self._seconds:
            return
        else:
            self._say(f"compiled {self._kernels} Triton kernels so far")
        self._said = now
