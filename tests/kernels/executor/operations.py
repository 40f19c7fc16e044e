"""One operation of TTGIR as a Python expression.

It may use `np`, the names of `values.py` and `memory.py`, `program` (the running one), and `constant_N`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.kernels.executor.values import ARRAYS


@dataclass(frozen=True)
class Type:
    """The type of a value: its shape, () for scalars, and its element (`f32`, or the target of a pointer)."""

    shape: tuple[int, ...]
    element: str
    pointer: bool = False
    tensor: bool = False

    @property
    def held(self) -> type[np.generic]:
        return np.int64 if self.pointer else ARRAYS[self.element]

    @property
    def bits(self) -> int:
        return int(re.sub(r"\D", "", self.element))

    @property
    def floating(self) -> bool:
        return self.held is np.float32


VALUES = re.compile(r"%[\w$.-]+(?:#\d+)?")
TYPE = re.compile(r"(?:(?:tensor|memdesc)?<((?:\d+x)+)|(?<![\w#%.]))(!tt\.ptr<)?(bf16|[if]\d+)\b")


def types_in(text: str) -> list[Type]:
    """All types that a text names, without layouts (`#L`)."""
    return [
        Type(tuple(int(size) for size in shape.split("x")[:-1]), element, bool(pointer), bool(shape))
        for shape, pointer, element in TYPE.findall(text)
    ]


@dataclass
class Operation:
    """Attributes:
    name: with its dialect, `arith.addi`. operands: expressions. predicate: of a comparison, the word after the name.
    attributes: `{axis = 1 : i32}`. types: those after the colon; the last is that of the result.
    arrays: whether values are arrays although their types are scalars, as in the region of a reduction.
    """

    name: str
    operands: list[str]
    predicate: str
    attributes: dict[str, str]
    types: list[Type]
    text: str
    arrays: bool

    @property
    def type(self) -> Type:
        return self.types[-1]

    @property
    def tensor(self) -> bool:
        return self.arrays or self.type.tensor

    def number(self, name: str) -> int:
        return int(self.attributes[name].split(":")[0])


def _sum_of_integers(symbol: str) -> Callable[[Operation], str]:
    def expression(op: Operation) -> str:
        a, b = op.operands
        return f"{a} {symbol} {b}" if op.tensor else f"wrapped({a} {symbol} {b}, {op.type.bits})"

    return expression


def _of_floats(form: str) -> Callable[[Operation], str]:
    def expression(op: Operation) -> str:
        plain = form.format(*op.operands)
        return plain if op.type.element == "f32" else f"to_{op.type.element}({plain})"

    return expression


def _of_bits(form: str) -> Callable[[Operation], str]:
    return lambda op: form.format(*op.operands)


def _least_or_most(array: str, single: str) -> Callable[[Operation], str]:
    return lambda op: f"{array if op.tensor else single}({', '.join(op.operands)})"


def _part_of_shared_memory(op: Operation) -> str:
    offsets = re.search(r"\[(\d+(?:, \d+)*)\]", op.text)
    assert offsets is not None
    starts = map(int, offsets[1].split(", "))
    parts = [f"{start}:{start + size}" for start, size in zip(starts, op.type.shape, strict=True)]
    return f"{op.operands[0]}[{', '.join(parts)}]"


SIGNED = {"eq": "==", "ne": "!=", "slt": "<", "sle": "<=", "sgt": ">", "sge": ">="}
UNSIGNED = {"ult": "<", "ule": "<=", "ugt": ">", "uge": ">="}
FLOATING = {
    "oeq": "{0} == {1}", "olt": "{0} < {1}", "ole": "{0} <= {1}", "ogt": "{0} > {1}", "oge": "{0} >= {1}",
    "une": "{0} != {1}", "uno": "({0} != {0}) | ({1} != {1})", "ord": "({0} == {0}) & ({1} == {1})",
}  # fmt: skip
"""With NaN, comparisons that begin with o are false, those that begin with u are true."""


def _compare_integers(op: Operation) -> str:
    a, b = op.operands
    if op.predicate in SIGNED:
        return f"{a} {SIGNED[op.predicate]} {b}"
    bits = op.type.bits
    return f"unsigned({a}, {bits}) {UNSIGNED[op.predicate]} unsigned({b}, {bits})"


def _compare_floats(op: Operation) -> str:
    compared = FLOATING[op.predicate].format(*op.operands)
    return compared if op.tensor else f"bool({compared})"


def _select(op: Operation) -> str:
    c, a, b = op.operands
    chosen = op.arrays or len(op.types) > 1
    return f"np.where({c}, {a}, {b})" if chosen else f"({a} if {c} else {b})"


def _dtype(kind: type[np.generic]) -> str:
    return f"np.{kind.__name__}"


def _extend_signed(op: Operation) -> str:
    (a,) = op.operands
    given, wanted = op.types
    sign = "-" if given.element == "i1" else ""
    return f"{sign}{a}.astype({_dtype(wanted.held)})" if op.tensor else f"{sign}int({a})"


def _extend_unsigned(op: Operation) -> str:
    (a,) = op.operands
    given, wanted = op.types
    plain = f"unsigned({a}, {given.bits})"
    return f"{plain}.astype({_dtype(wanted.held)})" if op.tensor else plain


def _truncate(op: Operation) -> str:
    (a,) = op.operands
    if op.type.element == "i1":
        return f"({a} & 1).astype(bool)" if op.tensor else f"bool({a} & 1)"
    return f"{a}.astype({_dtype(op.type.held)})" if op.tensor else f"wrapped({a}, {op.type.bits})"


def _from_integer(sign: bool) -> Callable[[Operation], str]:
    def expression(op: Operation) -> str:
        (a,) = op.operands
        plain = a if sign else f"unsigned({a}, {op.types[0].bits})"
        made = f"{plain}.astype(np.float32)" if op.tensor else f"np.float32({plain})"
        return f"to_{op.type.element}({made})"

    return expression


def _splat(op: Operation) -> str:
    return f"np.full({op.type.shape}, {op.operands[0]}, {_dtype(op.type.held)})"


def _load(op: Operation) -> str:
    pointer, mask, other = (*op.operands, "None", "None")[:3]
    return f"program.load({pointer}, {mask}, {other}, '{op.type.element}')"


def _store(op: Operation) -> str:
    pointer, value, mask = (*op.operands, "None")[:3]
    return f"program.store({pointer}, {value}, {mask}, '{op.type.element}')"


def _advance(op: Operation) -> str:
    pointer, number = op.operands
    size = max(8, op.types[0].bits) // 8
    return f"{pointer} + {number} * {f'np.int64({size})' if op.type.tensor else size}"


def _inline(op: Operation) -> str:
    if '"cvt.rna.tf32.f32 $0, $1;"' not in op.text:
        raise NotImplementedError(f"inline assembly: {op.text}")
    return f"rounded_to_tf32({op.operands[0]})"


def _allocate(op: Operation) -> str:
    if op.operands:
        return f"{op.operands[0]}.copy()"
    return f"poison({op.type.shape}, '{op.type.element}')"


def _copy(op: Operation) -> str:
    """The operands are told apart by the words before them: pointers, buffer, `mask`, `other`."""
    pointer, buffer, *rest = op.operands
    named = dict(zip([word for word in ("mask", "other") if f" {word} %" in op.text], rest, strict=True))
    mask, other = named.get("mask", "None"), named.get("other", "None")
    return f"program.copy({pointer}, {buffer}, {mask}, {other}, '{op.type.element}')"


def _multiply_warps(op: Operation) -> str:
    tf32 = op.types[1].element == "f32" and op.attributes.get("inputPrecision", "2").startswith("0")
    return f"program.multiply({', '.join(op.operands)}, tf32={tf32}, waits={op.attributes.get('isAsync') != 'true'})"


def _reshape(op: Operation) -> str:
    return f"{'reordered' if 'allow_reorder' in op.text else 'np.reshape'}({op.operands[0]}, {op.type.shape})"


def _wait_for_products(op: Operation) -> str:
    return f"program.wait_for_products({op.number('pendings')}, {', '.join(op.operands)})"


def _multiply_into(op: Operation) -> str:
    """The operands are `left, right, out, adds, issued, barrier[condition], ...`."""
    if not re.match(r"ttng.tc_gen5_mma (?:%[\w#-]+, ){4}%[\w#-]+, (?:%[\w#-]+\[%[\w#-]+\](?:, )?)+ ", op.text):
        raise NotImplementedError(op.text)
    *first, adds, issued = op.operands[:5]
    barriers, conditions = op.operands[5::2], op.operands[6::2]
    tf32 = op.types[1].element == "f32"
    return f"program.multiply_into({', '.join([*first, adds, issued, *barriers, *conditions])}, tf32={tf32})"


def _wait_barrier(op: Operation) -> str:
    """The operands are `barrier, parity, condition deps ...`; further dependencies matter only to the compiler."""
    waited = VALUES.findall(op.text.partition(" deps ")[0].partition(" : ")[0])
    return f"program.wait_barrier({', '.join(op.operands[: len(waited)])})"


def _store_in_tensor_memory(op: Operation) -> str:
    value, out, issued = op.operands
    return f"{issued} and np.copyto({out}, {value})"


def _multiply(op: Operation) -> str:
    tf32 = op.types[0].element == "f32" and "inputPrecision = tf32" in op.text
    return f"product({', '.join(op.operands)}, {tf32})"


def _transposed(op: Operation) -> str:
    order = [int(x) for x in op.attributes["order"].partition(":")[2].split()] if "order" in op.attributes else [1, 0]
    return f"np.transpose({op.operands[0]}, {order})"


EXPRESSIONS: dict[str, Callable[[Operation], str]] = {
    "arith.addi": _sum_of_integers("+"), "arith.subi": _sum_of_integers("-"), "arith.muli": _sum_of_integers("*"),
    "arith.shli": _sum_of_integers("<<"), "arith.shrsi": _of_bits("{0} >> {1}"),
    "arith.divsi": _of_bits("divided({0}, {1})"), "arith.remsi": _of_bits("remainder({0}, {1})"),
    "arith.andi": _of_bits("{0} & {1}"), "arith.ori": _of_bits("{0} | {1}"), "arith.xori": _of_bits("{0} ^ {1}"),
    "arith.minsi": _least_or_most("np.minimum", "min"), "arith.maxsi": _least_or_most("np.maximum", "max"),
    "arith.addf": _of_floats("{0} + {1}"), "arith.subf": _of_floats("{0} - {1}"), "arith.mulf": _of_floats("{0} * {1}"),
    "arith.divf": _of_floats("{0} / {1}"), "tt.precise_divf": _of_floats("{0} / {1}"),
    "tt.approx_divf": _of_floats("{0} / {1}"), "arith.negf": _of_bits("-{0}"),
    "arith.maxnumf": _of_bits("np.fmax({0}, {1})"), "arith.minnumf": _of_bits("np.fmin({0}, {1})"),
    "arith.maximumf": _of_bits("np.maximum({0}, {1})"), "arith.minimumf": _of_bits("np.minimum({0}, {1})"),
    "math.exp": _of_floats("np.exp({0})"), "math.exp2": _of_floats("np.exp2({0})"),
    "math.log": _of_floats("np.log({0})"),
    "math.log2": _of_floats("np.log2({0})"), "math.absf": _of_bits("np.abs({0})"),
    "math.fma": _of_floats("{0} * {1} + {2}"),
    "math.sqrt": _of_floats("sqrt({0})"), "math.rsqrt": _of_floats("rsqrt({0})"),
    "tt.precise_sqrt": _of_floats("np.sqrt({0})"),
    "arith.extsi": _extend_signed, "arith.extui": _extend_unsigned, "arith.trunci": _truncate,
    "arith.extf": _of_bits("{0}"), "arith.truncf": lambda op: f"to_{op.type.element}({op.operands[0]})",
    "arith.sitofp": _from_integer(True), "arith.uitofp": _from_integer(False),
    "arith.cmpi": _compare_integers, "arith.cmpf": _compare_floats, "arith.select": _select,
    "tt.bitcast": lambda op: f"bitcast({op.operands[0]}, '{op.types[0].element}', '{op.type.element}')",
    "tt.get_program_id": lambda op: f"program.{op.predicate}",
    "tt.get_num_programs": lambda op: f"program.grid[{'xyz'.index(op.predicate)}]",
    "tt.make_range": lambda op: f"np.arange({op.number('start')}, {op.number('end')}, dtype=np.int32)",
    "tt.unsplat": lambda op: f"{op.operands[0]}.flat[0]" + ("" if op.type.floating else ".item()"),
    "tt.splat": _splat, "tt.broadcast": lambda op: f"np.broadcast_to({op.operands[0]}, {op.type.shape})",
    "tt.expand_dims": lambda op: f"{op.operands[0]}.reshape({op.type.shape})",
    "tt.reshape": _reshape,
    "tt.trans": _transposed, "ttg.memdesc_trans": _transposed,
    "tt.gather": lambda op: f"gathered({op.operands[0]}, {op.operands[1]}, {op.number('axis')})",
    "tt.addptr": _advance, "tt.load": _load, "tt.store": _store, "tt.dot": _multiply,
    "tt.elementwise_inline_asm": _inline,
    "ttg.convert_layout": _of_bits("{0}"), "ttg.local_alloc": _allocate,
    "ttg.local_load": _of_bits("{0}.copy()"), "ttg.local_store": _of_bits("np.copyto({1}, {0})"),
    "ttg.local_dealloc": _of_bits("poisoned({0})"), "ttg.memdesc_index": _of_bits("{0}[{1}]"),
    "ttg.memdesc_subslice": _part_of_shared_memory,
    "ttg.async_copy_global_to_local": _copy, "ttg.async_commit_group": _of_bits("program.commit()"),
    "ttg.async_wait": lambda op: f"program.wait({op.number('num')})",
    "ttng.tmem_alloc": _allocate, "ttng.tmem_load": _of_bits("{0}.copy()"), "ttng.tmem_store": _store_in_tensor_memory,
    "ttng.init_barrier": _of_bits("program.init_barrier({0})"),
    "ttng.inval_barrier": _of_bits("program.invalidate_barrier({0})"),
    "ttng.wait_barrier": _wait_barrier, "ttng.tc_gen5_mma": _multiply_into,
    "ttng.warp_group_dot": _multiply_warps,
    "ttng.warp_group_dot_wait": _wait_for_products,
}  # fmt: skip

WITH_EFFECTS = re.compile(r"tt\.(load|store)|ttg\.(async|local)|ttng\.")
"""Operations that may give another result the second time."""
NOTHING = {"gpu.barrier", "ttg.barrier", "ttng.fence_async_shared"}
"""Operations without effect here, where a program is a single thread."""


def constant(text: str, type_: Type) -> Any:
    """The value of `arith.constant`: `dense<0.0>`, `true`, `-1`, or the bits of a float in hexadecimal."""
    written = re.fullmatch(r"dense<(.*)>", text)
    word = written[1] if written else text
    if word in ("true", "false"):
        value: Any = word == "true"
    elif not type_.floating:
        value = int(word, 0)
    elif word.startswith("0x"):
        width = {"f32": np.uint32, "bf16": np.uint32, "f16": np.uint16}[type_.element]
        bits = np.array([int(word, 16) << (16 if type_.element == "bf16" else 0)], width)
        value = bits.view(np.float16 if type_.element == "f16" else np.float32)[0]
    else:
        value = float(word)
    if type_.tensor:
        full = np.full(type_.shape, value, type_.held)
        full.flags.writeable = False
        return full
    return np.float32(value) if type_.floating else value
