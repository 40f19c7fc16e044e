"""Checks, from shapes alone, that no index of a kernel can overflow 32 bits and no grid CUDA's limits.

Launchers run on the meta device at the shapes in question, so terabytes cost nothing, and launches are recorded. Each
kernel is then lowered to Triton's own representation (TTIR), and the range of every integer in it is derived from the
grid, the arguments and what index tables may hold. An integer that exceeds its type and reaches an address, a mask or
the bounds of a loop is a fault. If none is found, none can occur; a fault that is found may be impossible with actual
values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tests.kernels.ttir import Launched, Op, parse

Range = tuple[float, float]
GRID_LIMITS = 2**31 - 1, 65_535, 65_535
"""CUDA's limits of a grid's x, y and z."""
ANYTHING = -math.inf, math.inf


def grid_faults(launch: Launched) -> list[str]:
    """Describes the grid sizes that CUDA refuses."""
    sides = zip("xyz", launch.grid, GRID_LIMITS, strict=False)
    return [f"{launch.name}: grid {axis} is {size:,}, above {most:,}" for axis, size, most in sides if size > most]


def index_faults(launch: Launched, tables: dict[str, Range], ttir: Callable[[Launched], str]) -> list[str]:
    """Describes integers that may exceed their type and reach an address, a mask or a loop.

    tables: the range of integers that are loaded from an argument, by its name.
    """
    return sorted(set(_Ranges(launch, tables).faults(ttir(launch))))


@dataclass(frozen=True)
class _Value:
    """An integer: a sum of named numbers times factors, plus a rest in a range; and where it may have exceeded its type
    on the way. Thanks to the names, `(first + i) - first` is known to be i. Or a pointer, with the argument it points
    into."""

    low: float
    high: float
    terms: tuple[tuple[str, float], ...] = ()
    overflow: str | None = None
    pointer: str | None = None


_UNKNOWN = _Value(*ANYTHING)


_UNCHANGED = "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.gather", "arith.extsi", "arith.extui"
_LINEAR = "arith.addi", "arith.subi", "arith.muli"


def _times(a: float, b: float) -> float:
    return a * b if a and b else 0


def _first_overflow(values: list[_Value]) -> str | None:
    return next((value.overflow for value in values if value.overflow), None)


class _Ranges:
    """Abstract interpretation of one launch."""

    def __init__(self, launch: Launched, tables: dict[str, Range]) -> None:
        self.launch, self.tables = launch, tables
        self.values: dict[str, _Value] = {}
        self.named: dict[str, Range] = {}
        self.at_most: dict[str, list[_Value]] = {}
        self.found: list[str] = []

    def faults(self, text: str) -> list[str]:
        begin = text.index("tt.func")
        for name, kind in re.findall(r"%(\w+): (!tt\.ptr<\w+>|\w+)", text[begin : text.index("\n", begin)]):
            value = self.launch.arguments[name]
            is_number = isinstance(value, int) and not isinstance(value, bool)
            self.values[f"%{name}"] = (
                _Value(value, value) if is_number else replace(_UNKNOWN, pointer=name if "ptr" in kind else None)
            )
        self._run(parse(text[begin:].splitlines()))
        return self.found

    # sequences of operations

    def _run(self, block: list[Op]) -> list[_Value]:
        """Run a block; returns the values that it ends with."""
        for op in block:
            if op.text.startswith("^bb0"):
                continue
            if op.text.startswith(("scf.yield", "scf.condition", "tt.reduce.return", "tt.scan.return")):
                return [self._get(name) for name in re.findall(r"%[\w#-]+", op.text.split(" : ")[0])]
            self._one(op)
        return []

    def _one(self, op: Op) -> None:
        made, right = op.text.split(" = ", 1) if op.text.startswith("%") else ("", op.text)
        name = re.match(r'"?([\w.]+)"?', right)
        assert name is not None, op.text
        kind = name[1]
        operands = [self._get(x) for x in re.findall(r"%[\w#-]+", right.split(" : ")[0])]
        results = self._results(kind, right, operands, op)
        names = self._names(made)
        scalar = not re.search(r"tensor<[^<>]*>$", op.types or op.text)
        for index, result in enumerate(names):
            value = results[index] if index < len(results) else _UNKNOWN
            self.values[result] = self._with_name(result, value) if scalar else value
            if scalar and kind == "arith.minsi":
                self.at_most[result] = operands

    @staticmethod
    def _names(made: str) -> list[str]:
        if not made:
            return []
        name, _, count = made.partition(":")
        return [f"{name}#{index}" for index in range(int(count))] if count else [name]

    def _get(self, name: str) -> _Value:
        return self.values.get(name, _UNKNOWN)

    def _results(self, kind: str, text: str, operands: list[_Value], op: Op) -> list[_Value]:
        if kind.startswith("scf."):
            return getattr(self, "_" + kind[4:])(text, operands, op)
        if kind in ("tt.reduce", "tt.scan"):
            return [self._combined(operands[0], op)]
        if kind in ("tt.load", "tt.store"):
            return [self._accessed(kind, operands)]
        if kind == "tt.addptr":
            self._reaches(operands[1], "an address")
            return [operands[0]]
        if kind == "tt.get_program_id":
            return [_Value(0, (*self.launch.grid, 1, 1)["xyz".index(text.split()[1])] - 1)]
        if kind == "tt.make_range":
            end, start = (int(re.search(rf"{word} = (\d+)", text)[1]) for word in ("end", "start"))  # type: ignore[index]
            return [_Value(start, end - 1)]
        if kind == "arith.constant":
            found = re.search(r"constant (?:dense<)?(-?\d+)>? : \S*i\d+>?$", text)
            return [_Value(int(found[1]), int(found[1])) if found else _UNKNOWN]
        if kind in _UNCHANGED:
            return [operands[0]]
        if kind == "arith.cmpi":
            return [_Value(0, 1, overflow=_first_overflow(operands))]
        if kind == "arith.select":
            return [self._join(operands[1], operands[2])]
        return [self._arithmetic(kind, text, operands)]

    def _arithmetic(self, kind: str, text: str, operands: list[_Value]) -> _Value:
        bits = re.search(r"\bi(\d+)>?$|xi(\d+)>$", text)
        if not kind.startswith("arith.") or bits is None:
            return _UNKNOWN
        overflow = _first_overflow(operands)
        result = self._linear(kind, *operands) if kind in _LINEAR else _Value(*self._range(kind, *operands))
        low, high = self._bounds(result)
        wide = int(bits[1] or bits[2])
        most = 2.0 ** (wide - 1)
        if wide >= 32 and math.isfinite(low + high) and (low < -most or high >= most):
            overflow = overflow or f"{kind} in {wide} bits gives {low:,.0f} to {high:,.0f}"
            return replace(_UNKNOWN, overflow=overflow)
        return replace(result, overflow=overflow)

    def _linear(self, kind: str, a: _Value, b: _Value) -> _Value:
        """Sums, differences, and products with a constant."""
        if kind == "arith.muli":
            if a.terms or a.low != a.high:
                a, b = b, a
            if a.terms or a.low != a.high or not math.isfinite(a.low):
                corners = [_times(x, y) for x in self._bounds(a) for y in self._bounds(b)]
                return _Value(min(corners), max(corners))
            ends = _times(a.low, b.low), _times(a.low, b.high)
            return _Value(min(ends), max(ends), tuple((name, a.low * factor) for name, factor in b.terms))
        sign = 1 if kind == "arith.addi" else -1
        factors = dict(a.terms)
        for name, factor in b.terms:
            factors[name] = factors.get(name, 0) + sign * factor
        ends = (b.low, b.high) if sign > 0 else (-b.high, -b.low)
        terms = tuple(sorted((name, factor) for name, factor in factors.items() if factor))
        return _Value(a.low + ends[0], a.high + ends[1], terms)

    def _range(self, kind: str, left: _Value, right: _Value | None = None) -> Range:
        (a, b), (c, d) = self._bounds(left), self._bounds(right or _UNKNOWN)
        if kind == "arith.trunci":
            return a, b
        if kind == "arith.minsi":
            return min(a, c), min(b, d)
        if kind == "arith.maxsi":
            return max(a, c), max(b, d)
        if kind == "arith.andi" and min(a, c) >= 0:
            return 0, min(b, d)
        if kind in ("arith.ori", "arith.xori") and min(a, c) >= 0 and max(b, d) <= 1:
            return 0, 1
        if kind == "arith.remsi" and c == d > 0:  # like C, towards zero
            return max(min(a, 0), 1 - d), min(max(b, 0), d - 1)
        if kind == "arith.divsi" and c == d > 0 and math.isfinite(a + b):
            return math.trunc(a / c), math.trunc(b / c)
        return ANYTHING

    def _bounds(self, value: _Value) -> Range:
        low, high = value.low, value.high
        for name, factor in value.terms:
            ends = [_times(factor, end) for end in self.named[name]]
            low, high = low + min(ends), high + max(ends)
        for name, factor in value.terms:  # the smallest of some: what holds for any of them in its place
            for other in self.at_most.get(name, ()) if factor == 1 else ():
                rest = replace(value, terms=tuple(term for term in value.terms if term[0] != name))
                high = min(high, self._bounds(self._linear("arith.addi", rest, other))[1])
        return low, high

    def _join(self, a: _Value, b: _Value) -> _Value:
        """A value that covers both."""
        if a.terms != b.terms:
            a, b = self._nameless(a), self._nameless(b)
        return replace(a, low=min(a.low, b.low), high=max(a.high, b.high), overflow=_first_overflow([a, b]))

    def _nameless(self, value: _Value) -> _Value:
        low, high = self._bounds(value)
        return replace(value, low=low, high=high, terms=())

    def _with_name(self, name: str, value: _Value) -> _Value:
        """Give a name to a number of which only the range is known."""
        if value.terms or value.pointer or value.low == value.high:
            return value
        self.named[name] = value.low, value.high
        return replace(value, low=0, high=0, terms=((name, 1),))

    # memory

    def _accessed(self, kind: str, operands: list[_Value]) -> _Value:
        mask = operands[(2 if kind == "tt.store" else 1) :][:1]
        for value in mask:
            self._reaches(value, "a mask", is_index=False)
        name = operands[0].pointer
        given = self.launch.arguments.get(name or "")
        if kind == "tt.store" or not isinstance(given, torch.Tensor) or given.dtype.is_floating_point:
            return _UNKNOWN
        if given.dtype == torch.uint8:
            return _Value(0, 255)
        if name not in self.tables:
            raise KeyError(f"{self.launch.name} loads integers from {name}: say what they may be")
        return _Value(*self.tables[name])

    def _reaches(self, value: _Value, where: str, *, is_index: bool = True) -> None:
        if value.overflow:
            self.found.append(f"{self.launch.name}: {value.overflow} and reaches {where}")
        elif is_index and not all(map(math.isfinite, self._bounds(value))):
            self.found.append(f"{self.launch.name}: a number without a bound reaches {where}")

    # operations with regions

    def _combined(self, value: _Value, op: Op) -> _Value:
        """The result of a reduction: a sum, maximum or minimum."""
        body = " ".join(inner.text for inner in op.regions[0])
        if re.search(r"arith\.(min|max)si", body):
            return value
        if "arith.addi" not in body:
            return _UNKNOWN
        sizes = re.search(r"tensor<([\dx]+)x", op.types)
        axis = re.search(r"axis = (\d+)", op.text)
        assert sizes is not None, op
        assert axis is not None, op
        many = int(sizes[1].split("x")[int(axis[1])])
        low, high = self._bounds(value)
        return _Value(min(low, _times(many, low)), max(high, _times(many, high)), overflow=value.overflow)

    def _if(self, text: str, operands: list[_Value], op: Op) -> list[_Value]:
        ends = [self._run(region) for region in op.regions]
        return [self._join(*both) for both in zip(*ends, strict=True)] if len(ends) == 2 else []

    def _for(self, text: str, operands: list[_Value], op: Op) -> list[_Value]:
        head = re.match(r"scf\.for (%\w+) = (%[\w#-]+) to (%[\w#-]+) step (%[\w#-]+)", text)
        assert head is not None, text
        begin, end = self._get(head[2]), self._get(head[3])
        for bound in (begin, end):
            self._reaches(bound, "a loop")
        low, high = self._bounds(begin)[0], self._bounds(end)[1]
        self.values[head[1]] = self._with_name(head[1], _Value(low, max(low, high - 1)))
        carried = re.search(r"iter_args\((.*?)\) ->", text)
        pairs = re.findall(r"(%\w+) = (%[\w#-]+)", carried[1]) if carried else []
        return self._fixpoint(
            [name for name, _ in pairs], [self._get(x) for _, x in pairs], lambda: self._run(op.regions[0])
        )

    def _while(self, text: str, operands: list[_Value], op: Op) -> list[_Value]:
        pairs = re.findall(r"(%\w+) = (%[\w#-]+)", text.split(" : ")[0])
        arguments = re.findall(r"(%\w+):", op.regions[1][0].text)
        leaves: list[list[_Value]] = []

        def turn() -> list[_Value]:
            _, *passed = self._run(op.regions[0])
            leaves.append(passed)
            self.values.update(zip(arguments, passed, strict=True))
            return self._run(op.regions[1])

        self._fixpoint([name for name, _ in pairs], [self._get(x) for _, x in pairs], turn)
        return leaves[-1]

    def _fixpoint(self, names: list[str], start: list[_Value], turn: Callable[[], list[_Value]]) -> list[_Value]:
        current = [self._nameless(value) for value in start]
        for step in range(8):
            self.values.update(zip(names, current, strict=True))
            ended = turn()
            joined = [self._join(a, self._nameless(b)) for a, b in zip(current, ended, strict=True)]
            if joined == current:
                break
            if step >= 2:  # what still grows has no bound
                joined = [
                    a if a == b else replace(b, low=-math.inf, high=math.inf)
                    for a, b in zip(current, joined, strict=True)
                ]
            current = joined
        return current
