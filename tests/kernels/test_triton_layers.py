"""What layers compute around the op, interpreted, on odd shapes: no block is full."""

import pytest
import torch

from dla_kernels import (
    add_skip,
    gated_rms_norm,
    l2_normalize,
    rms_norm,
    scale_heads,
    shifted_softplus,
    short_convolution,
    swiglu,
)
from tests.kernels import layer_cases as cases
from tests.kernels.poisoned_memory import poisoned_memory

pytestmark = pytest.mark.interpret
TYPES = [torch.float32, torch.float16]
"""In the interpreter bfloat16 is wrong; test_triton_executed.py has it."""


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("time", "channels", "width"), [(1, 5, 4), (2, 64, 4), (33, 70, 4), (65, 130, 2), (40, 16, 1)])
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
def test_convolution(dtype, time, channels, width, silu):
    cases.check_convolution("cpu", dtype, time=time, channels=channels, width=width, silu=silu, bias=time % 2 == 1)


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
def test_convolution_of_documents(silu):
    lengths = (1, 2, 30, 3, 1, 33)
    cases.check_convolution("cpu", torch.float32, batch=1, time=70, channels=9, silu=silu, documents=lengths)


@pytest.mark.parametrize("time", [1, 2, 3, 40])
def test_convolution_that_goes_on(time):
    cases.check_continued_convolution("cpu", torch.float32, time=time, channels=70, width=4)


@pytest.mark.parametrize("what", ["x", "dy"])
def test_what_is_not_finite_stays_in_its_document(what):
    x, weight, dy = torch.randn(1, 9, 3).requires_grad_(), torch.randn(3, 4).requires_grad_(), torch.randn(1, 9, 3)
    positions = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        (x if what == "x" else dy)[:, 3:6] = torch.nan
    y = short_convolution(x, weight, activation="silu", positions=positions, backend="triton")
    dx = torch.autograd.grad(y, x, dy)[0]
    assert y[:, 3:6].isnan().all() == (what == "x")
    assert dx[:, 3:6].isnan().all()
    for other in (y, dx):
        assert other[:, :3].isfinite().all()
        assert other[:, 6:].isfinite().all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("gate_first", [True, False], ids=["gate first", "norm first"])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 5, 96), 1), ((1, 1, 70), 1), ((2, 7, 96), 3), ((1, 9, 3, 40), 1), ((2, 3, 2, 200), 1), ((1, 3, 3072), 1)],
    ids=str,
)
def test_gated_norm(dtype, shape, groups, gate_first):
    cases.check_norm("cpu", dtype, shape, gate_first=gate_first, groups=groups)


def test_gated_norm_of_more_rows_than_programs(monkeypatch):
    monkeypatch.setattr("dla_kernels.layers.fused.gated_norm.PROGRAMS", 3)
    monkeypatch.setattr("dla_kernels.layers.fused.rows.NUMBERS", 32)
    cases.check_norm("cpu", torch.float32, (1, 41, 2, 16), gate_first=False)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 7), (2, 5, 3, 40), (1, 3, 192)], ids=str)
def test_l2_norm(dtype, shape):
    cases.check_l2_norm("cpu", dtype, shape)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("stream", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 5, 96), (1, 9, 3, 40), (1, 37, 130), (1, 3, 3072)], ids=str)
def test_rms_norm(dtype, stream, shape):
    cases.check_rms_norm("cpu", dtype, shape, stream=stream, weights=stream)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy tells of what the rows beside them come to
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_without_an_epsilon_only_the_rows_that_there_are_count(gated):
    x, gate, dy = (torch.randn(3, 12, dtype=torch.float64) for _ in range(3))

    def gradients(dtype, backend):
        leaves = [x.to(dtype).requires_grad_(), torch.ones(12, dtype=dtype, requires_grad=True)]
        if gated:
            y = gated_rms_norm(leaves[0], gate.to(dtype), leaves[1], 0.0, gate_first=True, backend=backend)
        else:
            y = rms_norm(*leaves, 0.0, backend=backend)
        return torch.autograd.grad(y, leaves, dy.to(dtype))

    for found, expected in zip(gradients(torch.float32, "triton"), gradients(torch.float64, "torch"), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_of_more_rows_than_programs(monkeypatch):
    monkeypatch.setattr("dla_kernels.layers.fused.rms_norm.PROGRAMS", 3)
    monkeypatch.setattr("dla_kernels.layers.fused.rows.NUMBERS", 32)
    cases.check_rms_norm("cpu", torch.float16, (2, 41, 12), stream=torch.float32)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 7), (2, 5, 3, 40), (1, 3, 2, 64)], ids=str)
def test_scaled_heads(dtype, shape):
    cases.check_scaled_heads("cpu", dtype, shape)


def test_skip_of_more_tokens_than_programs(monkeypatch):
    monkeypatch.setattr("dla_kernels.layers.fused.scaled_heads.PROGRAMS", 4)
    monkeypatch.setattr("dla_kernels.layers.fused.rows.NUMBERS", 32)
    cases.check_scaled_heads("cpu", torch.float32, (2, 41, 2, 16))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("numbers", [1, 3000])
def test_softplus(dtype, numbers):
    cases.check_softplus("cpu", dtype, numbers=numbers)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (9, 300), (16, 256)])
def test_swiglu(dtype, tokens, width):
    cases.check_swiglu("cpu", dtype, tokens=tokens, width=width)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0)], ids=["no sequence", "no token"])
def test_nothing_is_no_task_for_a_kernel(shape):
    x, heads, weight = torch.empty(*shape, 8), torch.empty(*shape, 2, 4), torch.ones(8)
    for call in (
        lambda backend: short_convolution(x, torch.ones(8, 4), backend=backend),
        lambda backend: gated_rms_norm(x, x, weight, 1e-5, gate_first=True, backend=backend),
        lambda backend: rms_norm(x, weight, 1e-5, backend=backend),
        lambda backend: l2_normalize(x, backend=backend),
        lambda backend: shifted_softplus(x, 0.5, backend=backend),
        lambda backend: scale_heads(heads, torch.empty(*shape, 2), backend=backend),
        lambda backend: add_skip(heads, heads, torch.ones(2), backend=backend),
        lambda backend: swiglu(x, backend=backend),
    ):
        assert call("auto").numel() == 0
        with pytest.raises(ValueError, match="x is empty; it takes at least one number; pass backend='torch' or"):
            call("triton")


def test_opcheck():
    from dla_kernels.layers.fused.convolution import convolution
    from dla_kernels.layers.fused.gated_activation import gated_halves
    from dla_kernels.layers.fused.gated_norm import gated_norm
    from dla_kernels.layers.fused.l2_norm import unit_rows
    from dla_kernels.layers.fused.rms_norm import normed_rows
    from dla_kernels.layers.fused.scaled_heads import scaled_heads, skip
    from dla_kernels.layers.fused.softplus import softplus

    x, gate = (torch.randn(1, 6, 8).requires_grad_() for _ in range(2))
    weight, bias, scale = (torch.randn(shape).requires_grad_() for shape in ((8, 4), (8,), (8,)))
    torch.library.opcheck(convolution.definition, (x, weight, bias, torch.arange(6), None, True))
    torch.library.opcheck(convolution.definition, (x, weight, None, None, None, False))
    torch.library.opcheck(gated_norm.definition, (x, gate, scale, 1e-5, True, 2))
    torch.library.opcheck(gated_halves.definition, (x,))
    torch.library.opcheck(unit_rows.definition, (x, 1e-6))
    for dtype in TYPES:
        torch.library.opcheck(normed_rows.definition, (x, scale, 1e-5, dtype))
    torch.library.opcheck(softplus.definition, (x, 0.5))
    heads, others = (torch.randn(1, 6, 4, 2).requires_grad_() for _ in range(2))
    torch.library.opcheck(scaled_heads.definition, (heads, torch.rand(1, 6, 4).requires_grad_()))
    torch.library.opcheck(skip.definition, (heads, others, torch.rand(4).requires_grad_()))


def test_compiled():
    x = torch.randn(1, 6, 8).requires_grad_()
    weight, scale = torch.randn(8, 4), torch.randn(8)

    def call(x):
        y = short_convolution(x, weight, activation="silu", backend="triton")
        y = gated_rms_norm(y, x, scale, 1e-5, gate_first=True, backend="triton")
        y = l2_normalize(rms_norm(y, scale, 1e-5, dtype=torch.float16, backend="triton"), backend="triton")
        y = shifted_softplus(y, 0.5, backend="triton")
        y = scale_heads(y.unflatten(-1, (2, 4)), x[..., :2], backend="triton")
        y = add_skip(y, x.unflatten(-1, (2, 4)), scale[:2], backend="triton").flatten(-2)
        return swiglu(y, backend="triton").square().sum()

    eager = torch.autograd.grad(call(x), x)
    compiled = torch.autograd.grad(torch.compile(call, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(compiled, eager)
