"""The gradient of a gate against its definition: the effect of one more shift of all older tokens on later tokens."""

from dataclasses import replace

import pytest
import torch

from dla_kernels import multi_state_attention, segment


def mixing(inputs, scale):
    """`Mx[t, j]` `[H, T, T]`: how much of token j's value token t reads at weight one, including all transitions."""
    heads, time = inputs.v.shape[2], inputs.v.shape[1]
    q, k = (x[0].repeat_interleave(heads // x.shape[2], 1) for x in (inputs.q, inputs.k))  # [T, H, K]
    carried = q.new_zeros(heads, time, q.shape[2])  # what is left of every token's write
    rows = []
    for t in range(time):
        carried = inputs.log_decay[0, t].exp()[:, None, None] * carried
        write = k[t]
        if inputs.beta is not None:
            write = inputs.beta[0, t, :, None] * k[t]
            carried = carried - (carried * k[t][:, None]).sum(-1, keepdim=True) * write[:, None]
        carried[:, t] = write
        rows.append((carried * q[t][:, None]).sum(-1) * scale)
    return torch.stack(rows, 1)


def ages(shift, capacity):
    """`[T, T]`: age at t of the slot that token j is in, by lists of slots."""
    slots, table = [], torch.zeros(len(shift), len(shift), dtype=torch.long)
    for t, a in enumerate(shift):
        if a != -1 or not slots:
            if 0 <= a < capacity:
                slots[a : a + 2] = [slots[a] + slots[a + 1]]
            slots.insert(0, [])
        slots[0].append(t)
        for age, members in enumerate(slots):
            table[t, members] = age
    return table


def dense_gate_gradient(inputs, plan, do, scale):
    """`dgate_s = sum over t >= s > j of y[t, j]`, summed literally."""
    time, heads = inputs.v.shape[1:3]
    capacity = plan.capacity
    mx = mixing(inputs, scale)
    dgate = torch.zeros(time, heads, dtype=torch.float64)
    for h in range(heads):
        age = ages(plan.shift[0, :, h].tolist(), capacity)
        weight = inputs.slot_weight[0, :, h]
        change = weight.gather(1, (age + 1).clamp(max=capacity - 1)) - weight.gather(1, age)
        y = (change * mx[h] * (do[0, :, h] @ inputs.v[0, :, h].T)).tril()
        for s in range(time):
            dgate[s, h] = y[s:, :s].sum()
    return dgate[None]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize(("time", "capacity"), [(40, 3), (150, 2), (150, 6), (150, 30)])
def test_one_sequence(draw_inputs, make_plan, read, time, capacity, delta, backend):
    inputs = draw_inputs(time, capacity, delta=delta)
    plan = make_plan("dynamic", inputs)
    gate = plan.boundary.double().requires_grad_()
    o, _ = read(inputs, replace(plan, gate=gate), backend=backend)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (dgate,) = torch.autograd.grad(o, gate, do)
    expected = dense_gate_gradient(inputs, plan, do, 5**-0.5)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(dgate, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_packed_documents(draw_inputs, make_plan, read, documents_of, delta, backend):
    """A boundary moves only the slots of its own document."""
    cu_seqlens = torch.tensor([0, 30, 64, 65, 150])
    inputs = draw_inputs(150, 4, delta=delta)
    plan = make_plan("dynamic", inputs, cu_seqlens=cu_seqlens)
    gate = plan.boundary.double().requires_grad_()
    o, _ = read(inputs, replace(plan, gate=gate), cu_seqlens=cu_seqlens, backend=backend)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (dgate,) = torch.autograd.grad(o, gate, do)
    for begin, end in documents_of(cu_seqlens):
        part = replace(plan, shift=plan.shift[:, begin:end])
        expected = dense_gate_gradient(inputs.tokens(begin, end), part, do[:, begin:end], 5**-0.5)
        torch.testing.assert_close(dgate[:, begin:end], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_gates_value_changes_nothing(draw_inputs, make_plan, read, backend):
    """The forward is hard: outputs and all other gradients are bitwise those without a gate."""
    inputs = draw_inputs(130, 5, delta=True).leaves()
    hard, soft = (make_plan("dynamic", inputs, gate=gate, backend=backend) for gate in ("hard", "straight_through"))
    assert hard.gate is None
    assert torch.equal(hard.shift, soft.shift)
    soft = replace(soft, gate=soft.gate.detach().requires_grad_())
    leaves = list(inputs.named().values())
    found = []
    for plan in (hard, soft):
        o, _ = read(inputs, plan, backend=backend)
        found.append([o, *torch.autograd.grad(o.sum(), leaves)])
    for without, with_gate in zip(*found, strict=True):
        torch.testing.assert_close(with_gate, without, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_gate_that_should_fall(backend):
    """The sign, on a case that can be followed by hand: an old token with a useful value, and the open slot weighed
    above older ones. Making the second token a boundary would lower the first one's weight, so its gate's gradient is
    negative."""
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.2], dtype=torch.float64).expand(1, 2, 1, 2)
    plan = segment(one, one, 2, 0.6)
    assert plan.shift.flatten().tolist() == [2, -1]
    gate = torch.zeros(1, 2, 1, dtype=torch.float64, requires_grad=True)
    o, _ = multi_state_attention(one, one, one, weight, replace(plan, gate=gate), backend=backend)
    (dgate,) = torch.autograd.grad(o[:, 1].sum(), gate)
    assert dgate.flatten().tolist() == pytest.approx([0.0, 0.2 - 1.0])
