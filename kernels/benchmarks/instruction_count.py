"""Counts the machine instructions of every kernel and of its loops, for a GPU that this machine need not have.

A count is not a time: it says nothing about waiting. But an iteration of a loop takes at least as many cycles as it has
instructions, and of two versions of a kernel that do the same, the count shows which one needs fewer. The last column
counts the kinds that matter: products (HGMMA, HMMA, UTCHMMA), loads (LDG, LDGSTS), barriers (BAR) and exponentials
(MUFU).

    python kernels/benchmarks/instruction_count.py [--target sm_90] [--type bf16] [--shape mamba2 ...] [--kernel ...]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import compile_report
import triton
from uniform_registers import Instruction, cuobjdump, functions

KINDS = ("HGMMA", "HMMA", "UTCHMMA", "LDG", "LDGSTS", "BAR", "MUFU")
SHORTEST = 8
"""Loops of at most this many instructions get no row."""


def disassembled(launch: compile_report.Launch, target: str) -> list[Instruction]:
    """The instructions that a launch compiles to."""
    sass = cuobjdump(compile_report.compiled(launch, target).asm["cubin"], "--dump-sass")
    return [instruction for function in functions(sass) for instruction in function]


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last index of each loop: the target of a backward jump, and the jump itself."""
    index: dict[int | None, int] = {instruction.at: i for i, instruction in enumerate(code)}
    found = []
    for i, instruction in enumerate(code):
        begin = index.get(instruction.target, i) if instruction.kind == "BRA" else i
        if i - begin >= SHORTEST:
            found.append((begin, i))
    return found


def kinds(code: list[Instruction]) -> str:
    """How many instructions of each kind in `KINDS` there are, as text."""
    counts = Counter(instruction.kind for instruction in code)
    return ", ".join(f"{kind} {counts[kind]}" for kind in KINDS if counts[kind])


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Count the instructions of the kernels and of their loops.")
    nvidia = [name for name in compile_report.SHARED_LIMIT if name.startswith("sm_")]
    parser.add_argument("--target", default="sm_90", choices=nvidia)
    parser.add_argument("--type", default="bf16", choices=list(compile_report.TYPES))
    parser.add_argument("--shape", nargs="*", default=list(compile_report.PAPER), choices=list(compile_report.SHAPES))
    parser.add_argument("--kernel", nargs="*", help="only kernels whose name contains one of these")
    arguments = parser.parse_args()
    print(f"{arguments.target}, {arguments.type}, triton {triton.__version__}; the variant that does most\n")
    print("| kernel | shape | part | instructions | of these |")
    print("| --- | --- | --- | ---: | --- |")
    for shape in arguments.shape:
        dtype = compile_report.TYPES[arguments.type]
        launches = compile_report.launches_of(compile_report.SHAPES[shape], dtype, arguments.target)
        for launch in {launch.kernel.__name__: launch for launch in launches}.values():
            name = launch.kernel.__name__
            if arguments.kernel and not any(part in name for part in arguments.kernel):
                continue
            code = disassembled(launch, arguments.target)
            print(f"| {name} | {shape} | all | {len(code)} | {kinds(code)} |", flush=True)
            for begin, end in loops(code):
                inside = code[begin : end + 1]
                print(f"| | | loop {begin} to {end} | {len(inside)} | {kinds(inside)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
