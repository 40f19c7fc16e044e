"""Finds loops whose number of iterations depends on a value carried by an outer loop; Triton 3.6 and 3.7 miscompile
them.

On the way to machine code, a pass drops values that a loop carries if nothing in the loop uses them, and it does not
count the bounds of an inner loop as a use: so these stay as in the first iteration. The interpreter does not show it.
Seen on an H200, where merges assumed that every chunk has as many segments as the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tests.kernels.ttir import Launched, Op, parse

NAME = re.compile(r"%[\w-]+")


def carried_bounds(launch: Launched, ttir: Callable[[Launched], str]) -> list[str]:
    """The bounds of inner loops that depend on a value carried by a loop around them."""
    return [f"{launch.name}: {fault}" for fault in _faults(parse(ttir(launch).splitlines()), frozenset(), {})]


def _faults(body: list[Op], carried: frozenset[str], operands: dict[str, list[str]]) -> Iterator[str]:
    for op in body:
        inner = carried
        head = re.search(r"scf\.for %[\w-]+ = (%[\w-]+) to (%[\w-]+)", op.text)
        if head is not None:
            for name in sorted(_origins(head.groups(), operands) & carried):
                yield f"the bounds of an inner loop depend on {name}, which the loop around it carries on"
            arguments = op.text.partition("iter_args(")[2]
            inner = carried | frozenset(re.findall(r"(%[\w-]+) = ", arguments))
        elif " = " in op.text:
            name, _, text = op.text.partition(" = ")
            operands[name.split(":")[0]] = NAME.findall(text)
        for region in op.regions:
            yield from _faults(region, inner, operands)


def _origins(names: tuple[str, ...], operands: dict[str, list[str]]) -> set[str]:
    """The names, and all names that they are computed from."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += operands.get(name, [])
    return found
