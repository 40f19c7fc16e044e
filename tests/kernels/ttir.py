"""Records launches instead of running them, and parses Triton's own representations (TTIR, TTGIR) into a tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A kernel, its arguments by name, and its grid."""

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def kind(self, but: str) -> str:
        """Equal for launches that differ only in the argument named `but` and in the contents of tensors."""
        return f"{self.name} {self.grid} {[self._kind_of(p.name) for p in self.kernel.params if p.name != but]}"

    def _kind_of(self, name: str) -> str:
        value = self.arguments[name]
        return str(value.dtype) if isinstance(value, torch.Tensor) else str(value)


@contextmanager
def recorded_launches() -> Iterator[list[Launched]]:
    """Within the context, launches are recorded and not run."""
    from triton.runtime.jit import JITFunction

    launches: list[Launched] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        launches.append(
            Launched(kernel=self, arguments=dict(zip(names, args, strict=False)) | kwargs, grid=tuple(grid))
        )

    original = JITFunction.run
    JITFunction.run = run  # type: ignore[method-assign]
    try:
        yield launches
    finally:
        JITFunction.run = original  # type: ignore[method-assign]


@dataclass
class Op:
    """A line of TTIR, and the regions that begin in it."""

    text: str
    regions: list[list[Op]] = field(default_factory=list)
    types: str = ""


def parse(lines: list[str]) -> list[Op]:
    """The body of the kernel's function as a tree."""
    function: list[Op] = []
    stack = [function]
    for raw in lines:
        line = re.sub(r"\s+loc\((?:[^()]|\([^()]*\)|\((?:[^()]|\([^()]*\))*\))*\)", "", raw).strip()
        if line.startswith("}") or line.startswith("^bb0"):
            if line.startswith("^bb0"):
                stack[-1].append(Op(line))
                continue
            stack.pop()
            if len(stack) == 1:
                break
            stack[-1][-1].types = line
            if line.endswith("{"):  # } else {, } do {
                stack[-1][-1].regions.append([])
                stack.append(stack[-1][-1].regions[-1])
        elif line.endswith("{"):
            stack[-1].append(Op(line, [[]]))
            stack.append(stack[-1][-1].regions[0])
        elif line.startswith(("%", "tt.", "ttg.", "ttng.", "scf.", "gpu.", '"')):
            stack[-1].append(Op(line))
    return function[0].regions[0]
