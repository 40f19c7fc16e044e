"""Values at the edge of what is allowed give numbers, not NaN, in outputs and in gradients."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import dynamic_linear_attention

BACKENDS = ["reference", "torch"]


def outputs_and_gradients(inputs, *, threshold=0.3, backend, **options):
    """o, the states and all gradients, including those through the gates, by name."""
    inputs, tau = inputs.leaves(), torch.full((inputs.v.shape[2],), threshold, requires_grad=True)
    capacity = inputs.slot_weight.shape[3]
    o, cache = dynamic_linear_attention(
        **inputs.named(), capacity=capacity, threshold=tau, gate="straight_through", return_cache=True,
        backend=backend, **options,
    )  # fmt: skip
    leaves = inputs.named() | {"threshold": tau}
    gradients = torch.autograd.grad(o.sum() + cache.state.sum(), list(leaves.values()))
    found = {"o": o, "state": cache.state} | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach() for name, x in found.items()}


def filled(**values):
    return lambda inputs: replace(
        inputs, **{name: torch.full_like(getattr(inputs, name), value) for name, value in values.items()}
    )


def scaled(**factors):
    return lambda inputs: replace(inputs, **{name: getattr(inputs, name) * f for name, f in factors.items()})


def spiked(value):
    """One token in seven has the given log decay, the others a mild one."""

    def change(inputs):
        log_decay = torch.full_like(inputs.log_decay, -0.01)
        log_decay[:, 3::7] = value
        return replace(inputs, log_decay=log_decay)

    return change


def zero_tokens(*names):
    """Tokens 0, 5, 10, ... are zero."""

    def change(inputs):
        changed = {name: getattr(inputs, name).clone() for name in names}
        for x in changed.values():
            x[:, ::5] = 0.0
        return replace(inputs, **changed)

    return change


BOTH_RULES = {
    "decay e^-50": filled(log_decay=-50.0),
    "decay e^-50 now and then": spiked(-50.0),
    "nothing is kept": filled(log_decay=-torch.inf),
    "nothing is kept now and then": spiked(-torch.inf),
    "no decay": filled(log_decay=0.0),
    "small keys": scaled(k=1e-12),
    "keys near the end of float32": scaled(k=1e-30),
    "large values": scaled(v=1e12),
    "large queries": scaled(q=1e12),
    "zero keys": filled(k=0.0),
    "zero values": filled(v=0.0),
    "zero tokens": zero_tokens("k", "v"),
    "zero weights": filled(slot_weight=0.0),
    "identical tokens": filled(k=5**-0.5, v=1.0),
}
PLAIN = {"large keys": scaled(k=1e12), "large keys and values": scaled(k=1e8, v=1e8)}
DELTA = {
    "beta 0": filled(beta=0.0),
    "beta 1": filled(beta=1.0),
    "beta 1, the same key again and again": filled(beta=1.0, k=5**-0.5),
    "beta 2, a reflection": filled(beta=2.0),
}
CASES = [pytest.param(change, delta, id=f"{name}, {'delta' if delta else 'plain'}")
         for cases, rules in ((BOTH_RULES, (False, True)), (PLAIN, (False,)), (DELTA, (True,)))
         for name, change in cases.items() for delta in rules]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "delta"), CASES)
def test_everything_is_finite(draw_inputs, change, delta, backend):
    inputs = change(draw_inputs(80, 4, delta=delta)).to(torch.float32)
    for name, x in outputs_and_gradients(inputs, backend=backend).items():
        assert torch.isfinite(x).all(), name


@pytest.mark.parametrize(("change", "delta"), [case for case in CASES if "keys" not in str(case.id)])
def test_both_backends_agree(draw_inputs, error, change, delta):
    """Outputs and states at the edge are still those of the recurrence."""
    inputs = change(draw_inputs(80, 4, delta=delta))
    found = [outputs_and_gradients(inputs, backend=backend) for backend in BACKENDS]
    for name in ("o", "state", "dslot_weight"):
        assert error(found[1][name], found[0][name]) < 1e-12, name


OFTEN = ("nothing is kept now and then, plain", "small keys, delta", "large values, plain")


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("change", "delta"),
    [
        pytest.param(*case.values, id=case.id, marks=() if str(case.id).startswith(OFTEN) else pytest.mark.slow)
        for case in CASES
    ],
)
def test_kernels_give_numbers_too(draw_inputs, error, change, delta):
    """In float32: everything is finite, outputs and states are those of the torch backend."""
    from dla_kernels.reader.fused import configs

    inputs = change(draw_inputs(40, 3, delta=delta)).to(torch.float32)
    wanted = outputs_and_gradients(inputs, backend="torch")
    with configs.override(tile=16, long=32, block_k=16, block_v=16):
        found = outputs_and_gradients(inputs, backend="triton")
    for name, x in found.items():
        assert torch.isfinite(x).all(), name
    for name in ("o", "state", "dslot_weight"):
        assert error(found[name], wanted[name]) < 1e-4, f"{name}: {error(found[name], wanted[name]):.1e}"


@pytest.mark.interpret
def test_kernels_keep_the_digits_after_forgetting(draw_inputs, make_plan, read, error):
    """One token forgets everything; the tokens of its chunk after it are correct nevertheless."""
    inputs = draw_inputs(100, 4)
    plan = make_plan("dynamic", inputs)
    for log_decay in (-torch.inf, -1e6):
        inputs.log_decay[:, 30] = log_decay
        o, _ = read(inputs.to(torch.float32), plan, backend="triton")
        assert error(o, read(inputs, plan, backend="torch")[0]) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_complete_forgetting_the_past_is_gone(draw_inputs, make_plan, read, backend):
    """A log decay of -infinity at token t: outputs from t on are those of a sequence whose past was empty."""
    inputs = draw_inputs(130, 4)
    inputs.log_decay[:, 70] = -torch.inf
    plan = make_plan("dynamic", inputs)
    o, _ = read(inputs, plan, backend=backend)
    emptied = replace(inputs, v=inputs.v.clone())
    emptied.v[:, :70] = 0.0
    expected, _ = read(emptied, plan, backend=backend)
    torch.testing.assert_close(o[:, 70:], expected[:, 70:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_beta_writes_and_removes_nothing(draw_inputs, make_plan, read, backend):
    inputs = draw_inputs(130, 4, delta=True, decay=False)
    inputs.beta[:, 50:] = 0.0
    inputs.slot_weight.fill_(1.0)
    _, cache = read(inputs, make_plan("dynamic", inputs), return_cache=True, backend=backend)
    past = inputs.tokens(0, 50)
    _, before = read(past, make_plan("dynamic", past), return_cache=True, backend=backend)
    torch.testing.assert_close(cache.state.sum(2), before.state.sum(2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_thresholds_at_the_ends_of_their_range(draw_inputs, backend, threshold):
    inputs = draw_inputs(80, 4, delta=True).to(torch.float32)
    for name, x in outputs_and_gradients(inputs, threshold=threshold, backend=backend).items():
        assert torch.isfinite(x).all(), name
