"""The Triton backend on a GPU: `make test-gpu`. Every type, rule and plan, every gradient.

Only a GPU shows the last part of the compiler, from tensors to machine code, and threads and programs in parallel.
Without one, `make test-executed` executes what Triton's compiler makes for one (`executor/`).
"""

import os
from dataclasses import replace

import pytest
import torch

from dla_kernels.plan import JOIN
from dla_kernels.self_check import OpShape, check_op
from tests.kernels import compiled_cases as cases
from tests.kernels import layer_cases

pytestmark = pytest.mark.gpu

VARIABLE = "DLA_TEST_EXECUTED"
"""Names the GPU, such as `sm_90`, for which kernels are compiled, to be executed on the CPU."""


@pytest.fixture(scope="module", autouse=True)
def device(request):
    """Where tensors are: on this machine's GPU, or where its kernels are executed."""
    if torch.cuda.is_available():
        yield "cuda"
    elif VARIABLE in os.environ:
        from tests.kernels.executor.launch import executing

        with executing(os.environ[VARIABLE]):
            yield "cpu"
    else:
        pytest.skip("needs a CUDA device; `make test-executed` needs none")


@pytest.fixture
def check(device):
    def compare(kind, time, capacity, dtype, **options):
        cases.check_reading(device, kind, time, capacity, dtype, **options)

    return compare


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 513, 1500])
def test_any_length(check, time, delta, dtype):
    check("dynamic", time, 8, dtype, delta=delta, cached=time % 2 == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(
    ("kind", "capacity"), [("single", 1), ("fixed", 4), ("fenwick", 11), ("dynamic", 30), ("dynamic", 64)]
)
def test_every_plan(check, kind, capacity, delta, dtype):
    check(kind, 1300, capacity, dtype, delta=delta)  # two chunks of the longest kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (24, 40), (128, 64), (192, 384), (256, 512), (128, 128)])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_every_size(check, key_dim, value_dim, delta, dtype):
    check("dynamic", 1100, 8, dtype, delta=delta, key_dim=key_dim, value_dim=value_dim, heads=2, groups=1, cached=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (12, 2)])
def test_every_sharing(check, heads, groups, dtype):
    """Products of q and k are stored if heads share them, and otherwise computed by every head."""
    check("dynamic", 700, 8, dtype, delta=False, batch=1, heads=heads, groups=groups)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("cached", [False, True], ids=["from nothing", "from a cache"])
def test_documents(check, cached, delta):
    documents = torch.tensor([0, 5, 300, 301, 900, 1400])
    check("dynamic", 1400, 8, torch.bfloat16, delta=delta, cached=cached, cu_seqlens=documents)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (128, 64), (192, 384)])
@pytest.mark.parametrize("threshold", [0.02, 0.4, 1.9])
def test_decisions_agree(device, threshold, key_dim, value_dim, dtype):
    cases.check_decisions(device, threshold, dtype, key_dim=key_dim, value_dim=value_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_through_boundaries(device, dtype):
    cases.check_gate(device, dtype)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(("kind", "capacity"), [("fenwick", 12), ("fixed", 30)])
def test_gates_of_a_long_sequence(device, kind, capacity, delta):
    cases.check_gates_of_a_long_sequence(device, kind, capacity, delta=delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("donated", [False, True], ids=["kept", "donated"])
def test_decode(device, delta, dtype, donated):
    cases.check_decode(device, delta, dtype, donated=donated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("donated", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize(("kind", "capacity"), [("single", 1), ("fixed", 4), ("fenwick", 8)])
def test_decode_for_a_plan(device, kind, capacity, delta, dtype, donated):
    cases.check_planned_decode(device, kind, capacity, delta, dtype, donated=donated)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_convolution(device, dtype):
    layer_cases.check_convolution(device, dtype, time=70, channels=136)
    layer_cases.check_convolution(device, dtype, batch=1, time=70, channels=136, documents=(1, 2, 30, 3, 1, 33))
    layer_cases.check_convolution(device, dtype, time=33, channels=70, width=3, bias=False, silu=False)
    layer_cases.check_continued_convolution(device, dtype, time=1, channels=136, width=4)
    layer_cases.check_continued_convolution(device, dtype, time=40, channels=70, width=4)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
@pytest.mark.parametrize("gate_first", [True, False], ids=["gate first", "norm first"])
def test_gated_norm(device, gate_first, dtype):
    for shape, groups in (
        ((2, 37, 96), 3),
        ((1, 37, 3, 40), 1),
        ((1, 9, 6, 384), 1),
        ((2, 3, 3072), 1),
        ((1, 5, 4096), 1),
    ):
        layer_cases.check_norm(device, dtype, shape, gate_first=gate_first, groups=groups)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_l2_norm(device, dtype):
    for shape in ((1, 37, 6, 192), (2, 5, 3, 40), (1, 4, 4096)):
        layer_cases.check_l2_norm(device, dtype, shape)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_rms_norm(device, dtype):
    for shape in ((2, 37, 96), (1, 9, 3, 40), (1, 1100, 1536), (1, 5, 4096)):
        layer_cases.check_rms_norm(device, dtype, shape, stream=torch.float32)
        layer_cases.check_rms_norm(device, dtype, shape, stream=dtype, weights=dtype)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_softplus(device, dtype):
    layer_cases.check_softplus(device, dtype, numbers=5000)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_scaled_heads(device, dtype):
    for shape in ((2, 37, 3, 64), (1, 5, 48, 64), (1, 9, 2, 40)):
        layer_cases.check_scaled_heads(device, dtype, shape)


@pytest.mark.parametrize("dtype", cases.TYPES, ids=str)
def test_swiglu(device, dtype):
    layer_cases.check_swiglu(device, dtype, tokens=37, width=300)
    layer_cases.check_swiglu(device, dtype, tokens=9, width=4096)


def test_same_bits_twice(draw_inputs, make_plan, device):
    """No atomics: the result does not depend on the order of programs."""
    inputs = draw_inputs(1000, 8, heads=4, groups=1, key_dim=64, value_dim=64).to(torch.bfloat16)
    plan = make_plan("dynamic", inputs.to(torch.float32), threshold=0.4, **cases.PLANNED)
    plan = replace(plan, shift=plan.shift.to(device), gate=(plan.shift != JOIN).float().to(device), final=None)
    inputs = inputs.map(lambda x: x.to(device))
    first, second = (cases.results(inputs, plan, None, None, "triton", torch.bfloat16) for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.mark.parametrize(
    ("shape", "documents"),
    [
        (OpShape(heads=4, groups=1, key_dim=128, value_dim=64, slots=30), True),
        (OpShape(heads=2, groups=2, key_dim=192, value_dim=384, slots=30, delta=True), False),
    ],
    ids=["mamba2", "gdn"],
)
def test_self_check(device, shape, documents):
    """What `dla-train preflight` runs, at the paper's sizes of a head, with weights and decays in float32 as in models:
    it finds nothing wrong on a GPU that is right."""
    found = check_op(shape, torch.device(device), torch.bfloat16, documents=documents, backend="triton")
    assert not [one for one in found if not one.is_right]
