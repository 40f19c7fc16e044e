"""Derivatives of hand-written gradients: an error, and never the rest of a sum without them."""

import pytest
import torch

from dla_kernels import dynamic_linear_attention
from dla_kernels.layers import short_convolution

BACKENDS = ["torch", pytest.param("triton", marks=pytest.mark.interpret)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("gate", ["hard", "straight_through"])
def test_second_derivatives_of_the_op_are_refused(draw_inputs, backend, delta, gate):
    inputs = draw_inputs(20, 3, delta=delta, batch=1).to(torch.float32).leaves()
    o, _ = dynamic_linear_attention(**inputs.named(), capacity=3, threshold=0.5, gate=gate, backend=backend)
    (dv,) = torch.autograd.grad(o.sum(), inputs.v, create_graph=True)
    penalized = o.sum() + dv.square().sum()  # the first sum alone has a derivative
    with pytest.raises(NotImplementedError, match=r"second derivatives are not implemented: .*backend='reference'"):
        torch.autograd.grad(penalized, inputs.slot_weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_first_derivatives_that_nobody_differentiates_costs_nothing(draw_inputs, backend):
    inputs = draw_inputs(20, 3, delta=False, batch=1).to(torch.float32).leaves()
    o, _ = dynamic_linear_attention(**inputs.named(), capacity=3, threshold=0.5, backend=backend)
    first, second = (
        torch.autograd.grad(o.sum(), inputs.v, create_graph=graph, retain_graph=True)[0] for graph in (False, True)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_transforms_are_refused_and_the_reference_has_them(draw_inputs, backend, transform):
    """Triton's operators would give a derivative of zero."""
    inputs = draw_inputs(20, 3, delta=False, batch=1).to(torch.float32)

    def derivative(backend):
        def total(v):
            return dynamic_linear_attention(**{**inputs.named(), "v": v}, capacity=3, backend=backend)[0].sum()

        if transform == "grad":
            return torch.func.grad(total)(inputs.v)
        return torch.func.jvp(total, (inputs.v,), (inputs.v,))[1]

    assert derivative("reference").abs().max() > 0.0
    with pytest.raises((NotImplementedError, RuntimeError), match=r"backend='reference'|functorch transforms"):
        derivative(backend)


def test_second_derivatives_of_the_convolution_are_refused():
    x, weight = torch.ones(1, 8, 4, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(short_convolution(x, weight).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not implemented"):
        torch.autograd.grad(dx.square().sum(), weight)
