"""The executor computes what a GPU would, and exposes what compiled code does too early or outside its tensors."""

import re

import numpy as np
import pytest
import torch

from tests.kernels.executor import launch, values
from tests.kernels.executor.memory import ExecutionFault, Memory
from tests.kernels.executor.program import Program
from tests.kernels.executor.translate import translated

NUMBERS = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
TIES = np.array([1.00390625, 1.01171875, 3.3895314e38, np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40], np.float32)


@pytest.mark.parametrize(("rounding", "dtype"), [(values.to_bf16, torch.bfloat16), (values.to_f16, torch.float16)])
def test_types_round_as_pytorch_does(rounding, dtype):
    x = np.concatenate((NUMBERS, NUMBERS * 1e-6, TIES))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounding(x), torch.from_numpy(x).to(dtype).float().numpy())


def test_tf32_has_ten_bits():
    x = NUMBERS[NUMBERS != 0]
    rounded = values.rounded_to_tf32(x)
    assert not np.any(rounded.view(np.uint32) & 0x1FFF)
    assert np.abs(rounded / x - 1).max() <= 2**-11


def test_integers_are_those_of_c():
    a, b = np.array([7, -7, 7, -7, 6], np.int32), np.array([2, 2, -2, -2, 3], np.int32)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert values.divided(a, b).tolist() == [3, -3, -3, 3, 2] == [values.divided(x, y) for x, y in pairs]
    assert values.remainder(a, b).tolist() == [1, -1, 1, -1, 0] == [values.remainder(x, y) for x, y in pairs]
    assert values.wrapped(2**31, 32) == -(2**31)
    assert values.unsigned(-1, 8) == 255
    assert values.unsigned(np.array([-1], np.int8), 8).tolist() == [255]


@pytest.mark.parametrize("reverse", [False, True])
def test_combining_along_an_axis(reverse):
    x = NUMBERS.reshape(64, 64)
    (total,) = values.reduced((x,), 1, lambda a, b: (a + b,))
    np.testing.assert_allclose(total, x.sum(1), rtol=1e-4, atol=1e-5)
    (running,) = values.scanned((x,), 0, reverse, lambda a, b: (a + b,))
    expected = x[::-1].cumsum(0)[::-1] if reverse else x.cumsum(0)
    np.testing.assert_allclose(running, expected, rtol=1e-4, atol=1e-4)


def pipelined_product():
    """A loop over products whose loads the compiler moves ahead."""
    import triton
    import triton.language as tl

    @triton.jit
    def product_kernel(x_ptr, y_ptr, z_ptr, inner, N: tl.constexpr, B: tl.constexpr):
        row, column, k = tl.arange(0, N), tl.arange(0, N), tl.arange(0, B)
        total = tl.zeros([N, N], tl.float32)
        for start in range(0, inner, B):
            at = start + k
            x = tl.load(x_ptr + row[:, None] * inner + at[None, :], mask=at[None, :] < inner, other=0.0)
            y = tl.load(y_ptr + at[:, None] * N + column[None, :], mask=at[:, None] < inner, other=0.0)
            total += tl.dot(x, y)
        tl.store(z_ptr + row[:, None] * N + column[None, :], total)

    return product_kernel


@pytest.fixture
def multiplied(monkeypatch, compile_report):
    """Compiles the product, changes its TTGIR, executes it, and returns the error of the result."""

    def run(target, change=lambda ttgir: ttgir, *, rows=48, columns=64):
        ttgir_of = launch.ttgir_of
        seen = []
        monkeypatch.setattr(launch, "ttgir_of", lambda *given: seen.append(ttgir_of(*given)) or change(seen[-1]))
        x, y = (torch.from_numpy(NUMBERS[: 64 * n]).to(torch.bfloat16) for n in (48, rows))
        z = torch.empty(64 * columns)
        with launch.executing(target):
            pipelined_product()[(1,)](x, y, z, 48, N=64, B=16, num_warps=4, num_stages=3)
        exact = x.float().view(64, 48) @ y.float().view(48, 64)
        return (z.view(64, 64) - exact).abs().max().item(), seen[0]

    return run


USED = {"sm_80": "tt.dot", "sm_90": "ttng.warp_group_dot ", "sm_100": "ttng.tc_gen5_mma"}


@pytest.mark.parametrize("target", USED)
def test_a_pipelined_product(multiplied, target):
    wrong, ttgir = multiplied(target)
    assert wrong < 1e-4
    assert USED[target] in ttgir
    assert "async_copy_global_to_local" in ttgir


@pytest.mark.parametrize("target", USED)
def test_a_copy_that_is_not_waited_for_shows(multiplied, target):
    def never(ttgir):
        return re.sub(r"(ttg\.async_wait .*)\{num = \d+ : i32\}", r"\1{num = 99 : i32}", ttgir)

    assert not multiplied(target, never)[0] < 1


def test_a_product_that_is_not_waited_for_shows(multiplied):
    with pytest.raises(TypeError, match="Unfinished"):
        multiplied("sm_90", lambda ttgir: re.sub(r"pendings = \d+", "pendings = 99", ttgir))


def test_a_product_in_tensor_memory_that_is_not_waited_for_shows(multiplied):
    def without(ttgir):
        return "\n".join(line for line in ttgir.splitlines() if "wait_barrier" not in line)

    with pytest.raises(ExecutionFault, match="given up while a product is under way"):
        multiplied("sm_100", without)


def test_a_wait_that_never_ends_shows(multiplied):
    def without(ttgir):
        return "\n".join(line for line in ttgir.splitlines() if "tc_gen5_mma" not in line)

    with pytest.raises(ExecutionFault, match="waits for ever"):
        multiplied("sm_100", without)


@pytest.mark.parametrize(("rows", "columns"), [(47, 64), (48, 63)], ids=["load", "store"])
def test_what_lies_outside_shows(multiplied, rows, columns):
    with pytest.raises(ExecutionFault, match="of a tensor of"):
        multiplied("sm_80", rows=rows, columns=columns)


def test_an_operation_that_is_not_known_is_named(multiplied):
    with pytest.raises(NotImplementedError, match=r"does not know: .*tt\.unheard_of"):
        multiplied("sm_80", lambda ttgir: ttgir.replace("tt.make_range", "tt.unheard_of"))


@pytest.mark.parametrize("target", ["sm_42", "gfx942", "h100"])
def test_a_target_that_is_not_known_is_refused(compile_report, target):
    with (
        pytest.raises(ValueError, match=f"the target is '{target}'; it must be one of sm_80, .*sm_120"),
        launch.executing(target),
    ):
        pass


def test_memory_keeps_tensors_apart():
    memory = Memory()
    x, y = torch.arange(8.0), torch.zeros(4, dtype=torch.bfloat16)
    at_x, at_y = memory.address(x[2:]), memory.address(y)
    assert memory.load(at_x, None, None, "f32") == 2
    assert memory.load(at_x - 8, None, None, "f32") == 0, "a view's storage may be reached before its beginning"
    memory.store(at_y + 2 * np.arange(4), NUMBERS[:4], np.array([True, False, True, False]), "bf16")
    expected = torch.from_numpy(NUMBERS[:4]).to(torch.bfloat16) * torch.tensor([1, 0, 1, 0])
    assert y.tolist() == pytest.approx(expected.tolist(), rel=2**-7)
    with pytest.raises(ExecutionFault, match="in no tensor"):
        memory.load(at_x - 12, None, None, "f32")


def test_numbers_that_bound_a_loop(compile_report):
    """Loaded by a program, as whole numbers."""
    from tests.kernels.test_triton_ranges import faulty

    counts, stored = torch.tensor([1, 3, 2, 0], dtype=torch.int32), torch.zeros(64)
    with launch.executing("sm_90") as ran:
        faulty("loaded_bound")[(1,)](stored, counts, 4, num_warps=4)
    assert ran == {"loaded_bound_kernel"}
    assert stored.count_nonzero() == 3


def test_the_source_of_a_program_can_be_read(compile_report):
    """A kernel of a loop and a branch."""
    ttgir = """
module {
  tt.func public @small_kernel(%x_ptr: !tt.ptr<i32>, %n: i32) {
    %c0 = arith.constant 0 : i32
    %c-1_i32 = arith.constant -1 : i32
    %total:2 = scf.for %i = %c0 to %n step %n iter_args(%a = %c-1_i32, %b = %c0) -> (i32, i32) : i32 {
      %more = arith.cmpi sgt, %i, %a : i32
      %c = scf.if %more -> (i32) {
        %d = arith.addi %i, %n : i32
        scf.yield %d : i32
      } else {
        scf.yield %a : i32
      }
      scf.yield %c, %a : i32, i32
    }
    tt.store %x_ptr, %total#0 : !tt.ptr<i32>
    tt.return
  }
}
"""
    memory, x = Memory(), torch.zeros(1, dtype=torch.int32)
    kernel = translated(ttgir)
    assert "for v_i in range(" in kernel.source
    kernel(Program(memory, (0, 0, 0), (1, 1, 1)), memory.address(x), 5)
    assert x.item() == 5
