"""Triton's interpreter, without its unnecessary work.

At every call of a jitted function from a kernel, such as `tl.sum`, the interpreter patches all functions of its
language again, which takes milliseconds, while the called function takes a fraction of one. Once per launch is enough.
And it recomputes every sum and product of integers in 64 bits, for an assertion that is active only with `debug`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """Within the context, a launch patches each module of the language only once, and integers are not checked."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: set[int] = set()

    def patch_once(fn: Any) -> Any:
        modules = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
        if modules and modules <= done:
            return None  # only the launch's own call, which is never here, asks for the scope
        done.update(modules)
        return patch(fn)

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            done.clear()

    builder = interpreter.interpreter_builder
    options = builder.options
    if not options.debug:
        builder.options = replace(options, sanitize_overflow=False)
    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launched  # type: ignore[method-assign]
    try:
        yield
    finally:
        builder.options = options
        interpreter._patch_lang = patch
        interpreter.GridExecutor.__call__ = launch  # type: ignore[method-assign]
