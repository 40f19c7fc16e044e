"""No kernel touches memory that is not its own, and no program reads or writes what another one writes.

The programs of a launch run in any order on a GPU, and one after the other here: `memory_checks` watches every address.
It does so in all interpreted tests of this folder (conftest.py); the tests here are about nothing else.
"""

import ast
from pathlib import Path

import pytest
import torch

import dla_kernels
from tests.kernels.memory_checks import MemoryFault
from tests.kernels.sanitizer_case import every_kernel

pytestmark = pytest.mark.interpret

SMALL = {"time": 19, "documents": (0, 18, 19), "heads": 1, "tile": 16, "long": 16, "block_k": 16, "block_v": 32}
"""Two chunks, the last not full; K 24 and V 40 fill no block; a document of one token."""


def kernels() -> set[str]:
    """Every kernel of the package."""
    return {
        node.name
        for path in Path(dla_kernels.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }


@pytest.mark.slow
def test_every_kernel(watched_memory):
    for delta in (False, True):
        every_kernel("cpu", torch.float16, delta=delta, **(SMALL | {"heads": 2}))  # that share products
    assert watched_memory == kernels()


@pytest.mark.slow
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(
    "shape",
    [
        {"time": 131, "documents": (0, 60, 61, 131), "heads": 2, "tile": 32, "long": 64},
        {"key_dim": 16, "value_dim": 16, "slots": 1, "heads": 4, "groups": 2},
        {"key_dim": 48, "value_dim": 17, "slots": 2, "time": 33, "documents": (0, 32, 33)},
        {"key_dim": 33, "value_dim": 96, "slots": 17, "heads": 3, "groups": 3, "time": 65, "documents": (0, 1, 64, 65)},
        {"key_dim": 128, "value_dim": 64, "slots": 30, "tile": 64, "long": 128, "block_k": 64, "block_v": 64,
         "time": 140, "documents": (0, 129, 140)},
        {"key_dim": 192, "value_dim": 384, "slots": 64, "tile": 32, "long": 32, "block_k": 64, "block_v": 64,
         "time": 34, "documents": (0, 34)},
    ],
    ids=lambda shape: "x".join(str(shape.get(name, "")) for name in ("key_dim", "value_dim", "slots")),
)  # fmt: skip
def test_every_address_at_other_shapes(shape, delta):
    every_kernel("cpu", torch.float16, delta=delta, **(SMALL | shape))


def faulty(kind: str):
    """A kernel of two programs with one fault."""
    import triton
    import triton.language as tl

    @triton.jit
    def beyond_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 8)
        tl.store(y_ptr + tl.program_id(0) * 8 + i, tl.load(x_ptr + tl.program_id(0) * 9 + i))

    @triton.jit
    def contested_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 8)
        tl.store(y_ptr + tl.program_id(0) * 7 + i, tl.load(x_ptr + i))

    @triton.jit
    def hurried_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 8) + tl.program_id(0) * 8
        tl.store(y_ptr + i, tl.load(x_ptr + i))
        tl.store(x_ptr + i, tl.load(y_ptr + i))

    @triton.jit
    def waiting_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 8)
        x = tl.load(x_ptr + i)
        if tl.program_id(0) == 1:
            x += tl.load(y_ptr + i)
        tl.store(y_ptr + tl.program_id(0) * 8 + i, x)

    @triton.jit
    def overtaking_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 8)
        x = tl.load(x_ptr + i, mask=tl.program_id(0) == 0, other=1.0)
        if tl.program_id(0) == 1:
            tl.store(x_ptr + i, x)

    @triton.jit
    def heaping_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 8)
        tl.store(y_ptr + tl.program_id(0) * 8 + i // 2, tl.load(x_ptr + i))

    return locals()[f"{kind}_kernel"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("beyond", "1 of 8 addresses of a load are in no tensor"),
        ("contested", "writes 'y_ptr' where program 0 of the same launch writes"),
        ("hurried", "reads 'y_ptr' where it has written before, without a barrier"),
        ("waiting", "reads 'y_ptr' where program 0 of the same launch writes"),
        ("overtaking", "writes 'x_ptr' where another program of the same launch reads"),
        ("heaping", "one store writes a place of 'y_ptr' twice"),
    ],
)
def test_faults_are_found(kind, message):
    kernel = faulty(kind)
    with pytest.raises(MemoryFault, match=f"{kind}_kernel, program [01]: {message}"):
        kernel[(2,)](torch.zeros(16), torch.zeros(16))


def test_what_kernels_write_arrives():
    """Views of one tensor share memory under the checks, too."""
    import triton
    import triton.language as tl

    @triton.jit
    def copy_kernel(x_ptr, y_ptr):
        i = tl.arange(0, 4)
        tl.store(y_ptr + i, tl.load(x_ptr + i))
        tl.debug_barrier()
        tl.store(y_ptr + 1 + i, tl.load(y_ptr + i))

    x = torch.arange(10.0)
    copy_kernel[(1,)](x[1:5], x[5:])
    assert x.tolist() == [0, 1, 2, 3, 4, 1, 1, 2, 3, 4]
