"""The Triton backend as compiled for GPUs that this machine does not have, executed on the CPU (`executor/`): a
selection of the cases of `make test-executed`, for each kind of tensor cores."""

import pytest
import torch

from tests.kernels import compiled_cases as cases
from tests.kernels import layer_cases

TARGETS = ["sm_80", "sm_90", "sm_100"]
"""Ampere's tensor cores take values, Hopper's shared memory, Blackwell's have a memory of their own."""

pytestmark = pytest.mark.xdist_group("executed")  # one process compiles for all


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


@pytest.fixture
def executed(target):
    """The names of the kernels that ran."""
    from tests.kernels.executor.launch import executing

    with executing(target) as ran:
        yield ran


@pytest.fixture
def check(executed):
    def compare(kind, time, capacity, dtype, **options):
        cases.check_reading("cpu", kind, time, capacity, dtype, **options)

    return compare


PAPER = [(False, 1090, 128, 64), (True, 530, 192, 384)]
"""Whether it is the delta rule, tokens (a chunk, a tile and a bit more), K, V."""


@pytest.mark.parametrize(("delta", "time", "key_dim", "value_dim"), PAPER, ids=["plain", "delta"])
@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_paper_shapes(check, executed, delta, time, key_dim, value_dim):
    sizes = {"heads": 2 - delta, "groups": 1, "key_dim": key_dim, "value_dim": value_dim}
    check("dynamic", time, 30, torch.bfloat16, delta=delta, **sizes)
    assert len(executed) > 15


@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_heads_that_share_nothing(check):
    check("dynamic", 200, 5, torch.bfloat16, delta=False, batch=1, heads=2, groups=2)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_every_type(check, delta, dtype):
    sizes = {"heads": 2, "groups": 1, "key_dim": 24, "value_dim": 40}
    check("dynamic", 330, 5, dtype, delta=delta, cached=True, cu_seqlens=torch.tensor([0, 5, 70, 71, 330]), **sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("target", ["sm_80", "sm_100"], indirect=True)
def test_other_tensor_cores(check, delta, dtype):
    """In float32 they would show: on Blackwell, Triton may use them even if told not to."""
    check("dynamic", 530, 8, dtype, delta=delta, cached=True, heads=2, groups=1, value_dim=40)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_the_gate_of_two_slots(check, delta):
    """Boundaries at nearly every token: row and column sums are much larger than their difference."""
    check("dynamic", 881, 2, torch.bfloat16, delta=delta, heads=1, groups=1, key_dim=40, value_dim=33, seed=1001)


@pytest.mark.parametrize("threshold", [0.02, 0.4, 1.9])
def test_decisions_agree(executed, threshold):
    cases.check_decisions("cpu", threshold, torch.bfloat16, time=400, key_dim=64, value_dim=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_through_boundaries(executed, dtype):
    cases.check_gate("cpu", dtype, key_dim=64)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_gates_of_a_long_sequence(executed, delta):
    cases.check_gates_of_a_long_sequence("cpu", "fixed", 30, delta=delta)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("donated", [False, True], ids=["kept", "donated"])
def test_decode(executed, delta, donated):
    cases.check_decode("cpu", delta, torch.bfloat16, tokens=12, donated=donated)
    assert "decode_kernel" in executed


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("donated", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize(("kind", "capacity"), [("single", 1), ("fixed", 4), ("fenwick", 6)])
@pytest.mark.parametrize("target", ["sm_90"], indirect=True)
def test_decode_for_a_plan(executed, kind, capacity, delta, donated):
    cases.check_planned_decode("cpu", kind, capacity, delta, torch.bfloat16, begin=26, tokens=11, donated=donated)
    assert "decode_planned_kernel" in executed
    assert ("plan_token_kernel" in executed) == (kind != "single")


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_around_the_op(executed, dtype):
    layer_cases.check_convolution("cpu", dtype, batch=1, time=70, channels=136, documents=(1, 2, 30, 3, 1, 33))
    layer_cases.check_continued_convolution("cpu", dtype, time=2, channels=70, width=4)
    layer_cases.check_norm("cpu", dtype, (2, 3, 96), gate_first=True, groups=3)
    layer_cases.check_norm("cpu", dtype, (1, 9, 2, 384), gate_first=False)
    layer_cases.check_swiglu("cpu", dtype, tokens=9, width=300)
    layer_cases.check_l2_norm("cpu", dtype, (1, 9, 2, 192))
    layer_cases.check_rms_norm("cpu", dtype, (1, 9, 1536), stream=torch.float32)
    layer_cases.check_rms_norm("cpu", dtype, (2, 3, 200), stream=dtype, weights=dtype)
    layer_cases.check_scaled_heads("cpu", dtype, (2, 9, 3, 64))
    layer_cases.check_softplus("cpu", dtype, numbers=3000)
    assert len(executed) == 17
