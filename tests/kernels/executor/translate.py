"""Translates TTGIR to a Python function."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels.executor import memory, values
from tests.kernels.executor.operations import EXPRESSIONS, NOTHING, VALUES, WITH_EFFECTS, Operation, constant, types_in
from tests.kernels.ttir import Op, parse

LAYOUT = re.compile(r"#ttg\.\w+<\{[^{}]*\}>")
ATTRIBUTES = re.compile(r"<?\{([^{}]*)\}>?")
RESULTS = re.compile(r"(%[\w$.-]+)(?::(\d+))? = ")


@functools.lru_cache(maxsize=1024)
def translated(ttgir: str) -> Callable[..., None]:
    """The kernel as `function(program, *arguments)`, with its source as the attribute `source`."""
    lines = ttgir.splitlines()
    head = next(line for line in lines if "tt.func" in line)
    parameters = [_identifier(name) for name in re.findall(r"(%[\w$.-]+): ", head.partition("(")[2])]
    translator = _Translator()
    (function,) = (op for op in parse(lines) if op.text.startswith("tt.func"))
    translator.body(function.regions[0], "    ", [])
    source = f"def kernel({', '.join(['program', *parameters])}):\n" + "\n".join(translator.lines) + "\n    return\n"
    scope: dict[str, Any] = {"np": np} | vars(values) | vars(memory) | translator.constants
    exec(compile(source, "<ttgir>", "exec"), scope)
    kernel = scope["kernel"]
    kernel.source = source
    return kernel


def _identifier(name: str) -> str:
    """`%c-1_i32` and `%acc:2#1` as Python names; no two names differ only in `$` or `.`."""
    return "v_" + re.sub(r"\W", "_", name[1:].replace("-", "minus_"))


def _operation(text: str, arrays: bool) -> Operation:
    text = re.sub(r"^.*? = ", "", text, count=1) if RESULTS.match(text) else text
    while LAYOUT.search(text):
        text = LAYOUT.sub("#L", text)
    attributes: dict[str, str] = {}
    for group in ATTRIBUTES.findall(text):
        for part in group.split(","):
            key, _, value = part.partition(" = ")
            attributes[key.strip()] = value.strip()
    plain = ATTRIBUTES.sub("", text)
    name = re.match(r'"?([\w.]+)"?', plain)
    assert name is not None, text
    before, _, after = plain.partition(" : ")
    predicate = re.match(r'"?[\w.]+"?\s+(\w+)\b', before)
    return Operation(
        name=name[1],
        operands=[_identifier(value) for value in VALUES.findall(before)],
        predicate=predicate[1] if predicate else "",
        attributes=attributes,
        types=types_in(after),
        text=text,
        arrays=arrays,
    )


def _results(text: str) -> list[str]:
    found = RESULTS.match(text)
    if found is None:
        return []
    name = _identifier(found[1])
    return [name] if found[2] is None else [f"{name}_{index}" for index in range(int(found[2]))]


def _tuple(names: list[str]) -> str:
    return "".join(f"{name}, " for name in names)


class _Translator:
    """Values that differ only in their layout are the same here, and are computed once: `_same` maps a name to the name
    that stands for it, `_made` (one for each region around the current place) maps an expression to its name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self._same: dict[str, str] = {}
        self._made: list[dict[str, str]] = []

    def body(self, operations: list[Op], indent: str, targets: list[str], *, arrays: bool = False) -> None:
        """Write a region; what it yields is assigned to `targets`."""
        before = len(self.lines)
        self._made.append({})
        for op in operations:
            if not op.text.startswith("^"):
                self._one(op, self._operation(op.text, arrays), indent, targets)
        self._made.pop()
        if len(self.lines) == before:
            self._write(indent, "pass")

    def _operation(self, text: str, arrays: bool = False) -> Operation:
        operation = _operation(text, arrays)
        operation.operands = [self._name(name) for name in operation.operands]
        return operation

    def _forget(self, names: list[str]) -> None:
        """Forget names that are defined anew, because sibling regions use the same ones."""
        for name in names:
            self._same.pop(name, None)

    def _name(self, name: str) -> str:
        return self._same.get(name, name)

    def _value(self, name: str) -> str:
        return self._name(_identifier(name))

    def _write(self, indent: str, line: str) -> None:
        self.lines.append(indent + line)

    def _one(self, op: Op, operation: Operation, indent: str, targets: list[str]) -> None:
        name, results = operation.name, _results(op.text)
        self._forget(results)
        if name in NOTHING or name == "tt.return":
            return
        if name == "scf.yield":
            if targets:
                self._write(indent, f"{_tuple(targets)}= {_tuple(operation.operands)}")
        elif name in ("tt.reduce.return", "tt.scan.return"):
            self._write(indent, f"return {_tuple(operation.operands)}")
        elif name == "scf.for":
            self._for(op, results, indent)
        elif name == "scf.while":
            self._while(op, results, indent)
        elif name == "scf.if":
            self._write(indent, f"if {operation.operands[0]}:")
            self.body(op.regions[0], indent + "    ", results)
            if len(op.regions) > 1:
                self._write(indent, "else:")
                self.body(op.regions[1], indent + "    ", results)
        elif name in ("tt.reduce", "tt.scan"):
            self._combine(op, operation, results, indent)
        elif name == "arith.constant":
            self._constant(operation, results[0])
        elif name in EXPRESSIONS:
            self._plain(operation, results, indent)
        else:
            raise NotImplementedError(f"an operation that the executor does not know: {op.text}")

    def _plain(self, operation: Operation, results: list[str], indent: str) -> None:
        expression = EXPRESSIONS[operation.name](operation)
        if operation.name == "ttng.warp_group_dot_wait":
            self._write(indent, f"{_tuple(results)}= {expression}")
        elif not results:
            self._write(indent, expression)
        elif WITH_EFFECTS.match(operation.name):
            self._write(indent, f"{results[0]} = {expression}")
        elif expression == "".join(operation.operands):  # another layout
            self._same[results[0]] = expression
        elif (same := next((made[expression] for made in self._made if expression in made), None)) is not None:
            self._same[results[0]] = same
        else:
            self._made[-1][expression] = results[0]
            self._write(indent, f"{results[0]} = {expression}")

    def _constant(self, operation: Operation, result: str) -> None:
        text = operation.text.removeprefix("arith.constant ").partition(" : ")[0].strip()
        type_ = operation.types[-1] if operation.types else types_in("i1")[0]
        name = self._made[0].setdefault(f"{text} {type_}", f"constant_{len(self.constants)}")
        self.constants.setdefault(name, constant(text, type_))
        self._same[result] = name

    def _for(self, op: Op, results: list[str], indent: str) -> None:
        head = re.search(r"scf\.for (%\S+) = (%\S+) to (%\S+) step (%\S+)", op.text)
        assert head is not None, op.text
        at = _identifier(head[1])
        self._forget([at])
        low, high, step = (self._value(name) for name in head.groups()[1:])
        given = re.findall(r"(%[\w$.-]+) = (%[\w$.#-]+)", op.text.partition("iter_args(")[2].partition(") -> ")[0])
        carried = [_identifier(name) for name, _ in given]
        self._forget(carried)
        for name, (_, value) in zip(carried, given, strict=True):
            self._write(indent, f"{name} = {self._value(value)}")
        self._write(indent, f"for {at} in range({low}, {high}, {step}):")
        self.body(op.regions[0], indent + "    ", carried)
        if results:
            self._write(indent, f"{_tuple(results)}= {_tuple(carried)}")

    def _while(self, op: Op, results: list[str], indent: str) -> None:
        given = re.findall(r"(%[\w$.-]+) = (%[\w$.#-]+)", op.text.partition("scf.while (")[2].partition(") : ")[0])
        carried = [_identifier(name) for name, _ in given]
        self._forget(carried)
        for name, (_, value) in zip(carried, given, strict=True):
            self._write(indent, f"{name} = {self._value(value)}")
        self._write(indent, "while True:")
        inner = indent + "    "
        *before, last = op.regions[0]
        # values of the condition's region are known only where it passes them on
        self.body(before, inner, [])
        condition, *passed = self._operation(last.text).operands
        if results:
            self._write(inner, f"{_tuple(results)}= {_tuple(passed)}")
        self._write(inner, f"if not {condition}:")
        self._write(inner, "    break")
        block = next((x.text for x in op.regions[1] if x.text.startswith("^")), "")
        arguments = [_identifier(name) for name in re.findall(r"(%[\w$.-]+):", block)]
        if arguments:
            self._forget(arguments)
            self._write(inner, f"{_tuple(arguments)}= {_tuple(passed)}")
        self.body(op.regions[1], inner, carried)

    def _combine(self, op: Op, operation: Operation, results: list[str], indent: str) -> None:
        """Write the region as a function of arrays."""
        block = next(x.text for x in op.regions[0] if x.text.startswith("^"))
        arguments = [_identifier(name) for name in re.findall(r"(%[\w$.-]+):", block)]
        self._forget(arguments)
        name = f"combine_{len(self.lines)}"
        self._write(indent, f"def {name}({', '.join(arguments)}):")
        self.body(op.regions[0], indent + "    ", [], arrays=True)
        given, axis = f"({_tuple(operation.operands)})", operation.number("axis")
        if operation.name == "tt.reduce":
            made = f"reduced({given}, {axis}, {name})"
        else:
            made = f"scanned({given}, {axis}, {operation.attributes['reverse'] == 'true'}, {name})"
        self._write(indent, f"{_tuple(results)}= {made}")
