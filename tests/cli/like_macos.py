"""Takes away from this Linux what macOS does not have, then runs `dla-train ARGUMENTS` for every list of them in the
JSON that is the only argument."""

from __future__ import annotations

import builtins
import ctypes
import functools
import json
import multiprocessing
import os
import platform
import resource
import sys
from typing import Any


class WithoutTriton:
    """What finds modules, but not Triton, of which there are no wheels."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, fullname: str, *rest: Any) -> Any:
        return None if fullname.split(".")[0] == "triton" else self._finder.find_spec(fullname, *rest)


class OtherLibrary(ctypes.CDLL):
    """The C library has no `mallopt`."""

    def __getattr__(self, name: str) -> Any:
        if name == "mallopt":
            raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
        return super().__getattr__(name)


def without_proc(function: Any) -> Any:
    """`function` of a path, where there is no /proc."""

    def called(path: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(path, str | os.PathLike) and str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return function(path, *rest, **named)

    return called


def refused(which: int, limits: tuple[int, int]) -> None:
    """`setrlimit`, where the system allows less than the hard limit."""
    raise ValueError("current limit exceeds maximum limit")


def become_macos() -> None:
    """From now on, this process and those that it spawns."""
    sys.meta_path[:] = [WithoutTriton(finder) for finder in sys.meta_path]
    del os.sched_getaffinity, os.sched_setaffinity
    ctypes.CDLL = OtherLibrary
    os.readlink, builtins.open = without_proc(os.readlink), without_proc(builtins.open)
    resource.setrlimit = refused
    import torch

    platform.processor = lambda: "arm"
    torch.backends.mps.is_available = functools.cache(lambda: True)  # some versions ask for what is in the cache


become_macos()
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn", force=True)
    from dla_train.__main__ import main

    for arguments in json.loads(sys.argv[1]):
        code = main(arguments)
        if code:
            sys.exit(code)
