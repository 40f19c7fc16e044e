"""No token knows what comes after it."""

import pytest
import torch

from dla_kernels import segment


def changed_from(inputs, t, seed=9):
    """Other values for token t and all after it."""
    generator = torch.Generator().manual_seed(seed)

    def change(x):
        x = x.clone()
        x[:, t:] = -torch.rand(x[:, t:].shape, generator=generator, dtype=x.dtype)
        return x

    return inputs.map(change)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("kind", ["dynamic", "fenwick", "fixed"])
@pytest.mark.parametrize("t", [1, 40, 64, 100, 129])
def test_outputs(draw_inputs, make_plan, read, kind, delta, backend, t):
    inputs = draw_inputs(130, 5, delta=delta)
    other = changed_from(inputs, t)
    before, after = (read(x, make_plan(kind, x, backend=backend) if kind == "dynamic" else make_plan(kind, x),
                          backend=backend)[0] for x in (inputs, other))  # fmt: skip
    torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-13)
    assert ((after[:, t] - before[:, t]).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_plans(draw_inputs, thresholds, backend):
    inputs = draw_inputs(130, 5)
    plan = segment(inputs.k, inputs.v, 5, thresholds, backend=backend)
    for t in (1, 40, 64, 100, 129):
        other = changed_from(inputs, t)
        again = segment(other.k, other.v, 5, thresholds, backend=backend)
        assert torch.equal(again.score[:, :t], plan.score[:, :t])
        assert torch.equal(again.shift[:, :t], plan.shift[:, :t])
        assert (again.score[:, t] != plan.score[:, t]).any()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_gradients(draw_inputs, make_plan, read, delta, backend):
    """The output of token t has no gradient with respect to later tokens, not even through the boundaries."""
    inputs = draw_inputs(130, 5, delta=delta).leaves()
    plan = make_plan("dynamic", inputs, gate="straight_through", backend=backend)
    o, _ = read(inputs, plan, backend=backend)
    for t in (0, 63, 64, 100):
        leaves = inputs.named()
        gradients = torch.autograd.grad(o[:, t].sum(), list(leaves.values()), retain_graph=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            assert gradient[:, t + 1 :].abs().max() < 1e-13, name
            assert gradient[:, : t + 1].abs().max() > 0 or (name == "log_decay" and t == 0), name
