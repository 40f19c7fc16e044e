"""With all slot weights one, the result is that of the backbone with its single state, wherever the boundaries are."""

import pytest
import torch

from dla_kernels import dynamic_linear_attention


def single_state(q, k, v, log_decay, beta, scale):
    """The recurrence as Mamba-2 and Gated DeltaNet print it: one state, corrected by what it already holds for k."""
    q, k = (x.repeat_interleave(v.shape[2] // k.shape[2], 2) for x in (q, k))
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    for t in range(v.shape[1]):
        if log_decay is not None:
            state = state * torch.exp(log_decay[:, t])[..., None, None]
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - (k[:, t, :, :, None] * state).sum(2))
        state = state + k[:, t, :, :, None] * value[:, :, None]
        outputs.append((q[:, t, :, :, None] * scale * state).sum(2))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(
    ("kind", "capacity"),
    [("dynamic", 1), ("dynamic", 2), ("dynamic", 6), ("fixed", 4), ("fenwick", 5), ("single", 1)],
)
def test_backbone_for_every_plan(draw_inputs, make_plan, read, kind, capacity, delta, backend):
    inputs = draw_inputs(90, capacity, delta=delta, batch=2)
    inputs.slot_weight.fill_(1.0)
    plan = make_plan(kind, inputs)
    o, _ = read(inputs, plan, backend=backend)
    expected = single_state(inputs.q, inputs.k, inputs.v, inputs.log_decay, inputs.beta, scale=5**-0.5)
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_backbone_for_every_threshold(draw_inputs, threshold, delta):
    inputs = draw_inputs(70, 4, delta=delta, decay=False)
    inputs.slot_weight.fill_(1.0)
    o, _ = dynamic_linear_attention(**inputs.named(), capacity=4, threshold=threshold, scale=0.7)
    expected = single_state(inputs.q, inputs.k, inputs.v, None, inputs.beta, scale=0.7)
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-12)


def test_weights_scale_the_output(draw_inputs, make_plan, read):
    """Otherwise a reader that ignores the weights would pass the tests above."""
    inputs = draw_inputs(70, 4)
    inputs.slot_weight.fill_(0.25)
    o, _ = read(inputs, make_plan("dynamic", inputs))
    expected = 0.25 * single_state(inputs.q, inputs.k, inputs.v, inputs.log_decay, None, scale=5**-0.5)
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-12)
