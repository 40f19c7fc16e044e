"""Checks that no kernel contains what TRITON-PITFALLS.md forbids, and that the compile report forgets no kernel."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dla_kernels
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.measured import ALLOWED

PACKAGE = Path(dla_kernels.__file__).parent
TURNED = {"trans", "permute", "T", "transpose"}
WARPS = 4


def modules() -> list[tuple[str, ast.Module]]:
    return [(str(path.relative_to(PACKAGE)), ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


def jitted(module: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions that Triton compiles."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(x) for x in node.decorator_list):
            yield node


def launches(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Calls `kernel[grid](...)`, with the kernel's name."""
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id.endswith("_kernel")
        ):
            yield node.func.value.id, node


def launched(module: ast.Module) -> set[str]:
    """Names of kernels that are launched."""
    return {name for name, _ in launches(module)}


def turned(module: ast.Module) -> list[str]:
    """Transpositions in compiled functions."""
    return [
        f"{function.name}, line {node.lineno}: {ast.unparse(node)}"
        for function in jitted(module)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in TURNED
    ]


def too_many_warps(module: ast.Module) -> list[str]:
    """Launches with a number of warps other than a small constant or that of the tiles, which a table limits."""
    given = [
        keyword.value
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "num_warps"
    ]
    given += [
        value
        for node in ast.walk(module)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "num_warps"
    ]
    few = {"tiles.warps", *(str(n) for n in range(1, WARPS + 1))}
    return [f"line {value.lineno}: num_warps={ast.unparse(value)}" for value in given if ast.unparse(value) not in few]


def prefetching_pairs(module: ast.Module) -> list[str]:
    """Kernels that go through pairs of tiles of a chunk (`token_starts`) and may load ahead: with Triton 3.6 on an
    H100, such a loop gave wrong results with three stages, and correct ones with one."""
    functions = {function.name: ast.unparse(function) for function in jitted(module)}
    pairing = {"token_starts"}
    while more := {name for name, text in functions.items() if any(f"{p}(" in text for p in pairing)} - pairing:
        pairing |= more
    return [
        f"{name}, line {call.lineno}"
        for name, call in launches(module)
        if name in pairing and not any(k.arg == "num_stages" and ast.unparse(k.value) == "1" for k in call.keywords)
    ]


def tuned(module: ast.Module) -> list[str]:
    """Uses of Triton's tuner, whose keys would hold lengths."""
    return [
        f"line {node.lineno}: {node.attr}"
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and node.attr in {"autotune", "heuristics"}
    ]


def calls(module: ast.Module, name: str) -> Iterator[tuple[str, ast.Call, set[str | None]]]:
    """Calls of a function of the language in compiled functions, with the names of their arguments."""
    for function in jitted(module):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield function.name, node, {keyword.arg for keyword in node.keywords}


def undefined_loads(module: ast.Module) -> list[str]:
    """Loads with a mask but without a value for masked elements: 0 in the interpreter, anything on a GPU."""
    return [
        f"{name}, line {call.lineno}"
        for name, call, given in calls(module, "tl.load")
        if "other" not in given and ("mask" in given or len(call.args) > 1)
    ]


def rounded_products(module: ast.Module) -> list[str]:
    """Products that do not specify how float32 is multiplied: exactly in the interpreter, with 10 bits (tf32) on a
    GPU."""
    return [
        f"{name}, line {call.lineno}" for name, call, given in calls(module, "tl.dot") if "input_precision" not in given
    ]


def unordered(module: ast.Module) -> list[str]:
    """Atomics: on a GPU, the order of their sums differs each time."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and node.attr.startswith("atomic_")
    ]


def nothing_returned(module: ast.Module) -> list[str]:
    """`return None` in compiled functions: Triton 3.6 refuses calls of these, 3.7 does not."""
    return [
        f"{function.name}, line {node.lineno}"
        for function in jitted(module)
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and node.value.value is None
    ]


RULES = [
    turned, too_many_warps, prefetching_pairs, tuned, undefined_loads, rounded_products, unordered, nothing_returned,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_kernel_breaks(rule):
    """Nothing is transposed at all, and so no result of a product: tiles are loaded in the orientation that is
    needed."""
    found = {name: broken for name, module in modules() if (broken := rule(module))}
    assert not found


def test_the_rules_find_what_they_forbid():
    bad = ast.parse(
        "@triton.autotune(configs=[], key=['T'])\n"
        "@triton.jit\n"
        "def bad_kernel(x, y):\n"
        "    acc = tl.dot(x, y, input_precision=PRECISION)\n"
        "    tl.dot(tl.trans(acc), y)\n"
        "    tl.dot(acc.T, y)\n"
        "    tl.load(x, mask=y > 0)\n"
        "    tl.load(x) + tl.load(x, mask=y > 0, other=0.0)\n"
        "    tl.atomic_add(x, y)\n"
        "    token_starts(x)\n"
        "    return None\n"
        "bad_kernel[(1,)](x, y, num_warps=8, num_stages=2)\n"
        "sizes = {'num_warps': 16}\n"
    )
    assert [len(rule(bad)) for rule in RULES] == [2, 2, 1, 1, 1, 2, 1, 1]
    assert launched(bad) == {"bad_kernel"}


def test_tiles_have_few_warps():
    assert Tiles(tile=64, long=64, block_k=64, block_v=64).warps <= WARPS
    assert max(ALLOWED["warps"]) <= WARPS


def test_the_compile_report_has_every_kernel_that_is_launched(compile_report):
    launches = [
        launch
        for shape in compile_report.PAPER.values()
        for launch in compile_report.launches_of(shape, torch.bfloat16, "sm_90")
    ]
    in_sources = set().union(*(launched(module) for _, module in modules()))
    assert len(in_sources) > 20
    assert {launch.kernel.__name__ for launch in launches} == in_sources
    assert max(launch.options["num_warps"] for launch in launches) <= WARPS
