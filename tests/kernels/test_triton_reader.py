"""The Triton reader, interpreted, gives the results of the recurrence: outputs, states and every gradient.

The exact value is that of the recurrence in float64 on the same (rounded) inputs. The yardstick for errors is the
recurrence itself with tokens, products and states in the kernels' type. bfloat16 is missing, because the interpreter
computes on its bits as if they were integers (see tests/kernels/test_triton_gpu.py).
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from dla_kernels import Cache, multi_state_attention
from dla_kernels.documents import pack, unpack
from dla_kernels.plan import JOIN
from dla_kernels.reader import naive
from tests.kernels.poisoned_memory import poisoned_memory

pytestmark = pytest.mark.interpret

RUNNING_SUMS = ("d log_decay", "d gate")
"""Sums over up to all later tokens of differences of terms: a rounding each time the number of terms doubles."""


@contextmanager
def sizes(**chosen):
    from dla_kernels.reader.fused import configs

    with configs.override(**chosen):
        yield


@pytest.fixture
def poisoned():
    with poisoned_memory():
        yield


def recurrence(inputs, plan, cache_state, cu_seqlens, dtype):
    """The definition with everything in `dtype`, documents one a row."""
    inputs = inputs.map(lambda x: x.to(dtype))
    heads, (key_dim, value_dim) = inputs.v.shape[2], (inputs.k.shape[3], inputs.v.shape[3])
    if cu_seqlens is not None:
        inputs = inputs.map(lambda x: unpack(x, cu_seqlens))
        shift = unpack(plan.shift, cu_seqlens, fill=JOIN)
        plan = replace(plan, shift=shift, gate=None if plan.gate is None else unpack(plan.gate, cu_seqlens))
    shape = (inputs.v.shape[0], heads, plan.capacity, key_dim, value_dim)
    state = torch.zeros(shape, dtype=dtype) if cache_state is None else cache_state.to(dtype)
    q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (inputs.q * key_dim**-0.5, inputs.k))
    o, state = naive.read_sequences(q, k, inputs.v, inputs.slot_weight, plan, inputs.log_decay, inputs.beta, state)
    return o if cu_seqlens is None else pack(o, cu_seqlens), state


def results(inputs, plan, cache_state, cu_seqlens, return_state, dtype, backend):
    """Outputs and gradients by name; leaves are in `dtype`, except states and gates, which are float32 in the op."""
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.named().items()}
    inputs = replace(inputs, **leaves)
    wide = dtype if backend == "recurrence" else torch.float32
    cache = None
    if plan.gate is not None:
        leaves["gate"] = plan.gate.detach().to(wide).requires_grad_()
        plan = replace(plan, gate=leaves["gate"])
    if cache_state is not None:
        leaves["state before"] = cache_state = cache_state.to(wide).requires_grad_()
        cache = Cache.in_age_order(cache_state, torch.ones(cache_state.shape[0], dtype=torch.int64), None)
    if backend == "recurrence":
        o, state = recurrence(inputs, plan, cache_state, cu_seqlens, dtype)
    else:
        o, ended = multi_state_attention(
            **inputs.named(), plan=plan, cu_seqlens=cu_seqlens, cache=cache, return_cache=return_state, backend="triton"
        )
        state = None if ended is None else ended.state_by_age()
    found = {"o": o}
    generator = torch.Generator().manual_seed(1)
    total = (o * torch.randn(o.shape, generator=generator).to(o.dtype)).sum()
    if return_state:
        assert state is not None
        found["state"] = state
        total = total + (state * torch.randn(state.shape, generator=generator).to(state.dtype)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {k: x.detach() for k, x in found.items()} | {f"d {n}": x for n, x in zip(leaves, gradients, strict=True)}


@pytest.fixture
def check(draw_inputs, make_plan, error, poisoned):
    def compare(
        kind, time, capacity, *, dtype=torch.float32, cu_seqlens=None, cached=False, gate=True, return_state=True,
        tile=32, long=64, block_k=16, **shape,
    ):  # fmt: skip
        shape = {"heads": 2, "groups": 1, "key_dim": 24, "value_dim": 40, "seed": time + capacity} | shape
        inputs = draw_inputs(time, capacity, **shape).to(dtype)
        plan = make_plan(kind, inputs.to(torch.float32), cu_seqlens=cu_seqlens, threshold=0.4)
        if gate:
            plan = replace(plan, gate=(plan.shift != JOIN).float())
        state = None
        if cached:
            sequences = inputs.v.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            size = (sequences, inputs.v.shape[2], capacity, inputs.k.shape[3], inputs.v.shape[3])
            state = torch.randn(size, generator=torch.Generator().manual_seed(2)).to(dtype).float()
        given = inputs, plan, state, cu_seqlens, return_state
        exact = results(*given, torch.float64, "recurrence")
        definition = results(*given, dtype, "recurrence")
        with sizes(tile=tile, long=long, block_k=block_k, block_v=32):  # two blocks of each, the second not full
            fast = results(*given, dtype, "triton")
        assert fast.keys() == exact.keys()
        # Decays are exponents of float32 sums over a chunk, where the definition multiplies token by token.
        depth = 0.0 if inputs.log_decay is None else -inputs.log_decay[:, :long].double().sum(1).min().item()
        of_decays = depth * torch.finfo(torch.float32).eps / 2
        for name, x in fast.items():
            roundings = time.bit_length() if name in RUNNING_SUMS else 1
            allowed = 2 * error(definition[name], exact[name]) + roundings * torch.finfo(dtype).eps + of_decays
            assert error(x, exact[name]) <= allowed, f"{name}: {error(x, exact[name]):.1e}, allowed {allowed:.1e}"

    return compare


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 130])
def test_any_length(check, time, delta):
    # one token has but a few numbers, whose roundings say little: four rows and two heads of it
    rows, heads = (4, 2) if time == 1 else (1, 1)
    check("dynamic", time, 4, delta=delta, batch=rows, heads=heads, gate=time > 1, return_state=time != 64)


@pytest.mark.parametrize(
    ("kind", "capacity", "delta"),
    [
        ("single", 1, False), ("single", 1, True), ("fixed", 3, False), ("fenwick", 5, False), ("fenwick", 5, True),
        ("dynamic", 30, False), ("dynamic", 30, True), ("dynamic", 2, False), ("dynamic", 1, False),
        ("dynamic", 1, True),
    ],
)  # fmt: skip
def test_every_plan(check, kind, capacity, delta):
    """Several chunks; one head, since all of them do the same, and one block of K and V for many slots."""
    size = {"key_dim": 16, "value_dim": 32} if capacity == 30 else {}
    decay = not (kind == "single" and delta)
    check(kind, 70, capacity, delta=delta, decay=decay, tile=16, long=32, heads=1, **size)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("cached", [False, True], ids=["from nothing", "from a cache"])
def test_documents_inside_chunks(check, cached, delta):
    documents = torch.tensor([0, 5, 40, 41, 90])
    check("dynamic", 90, 4, delta=delta, cached=cached, heads=1, cu_seqlens=documents, return_state=cached)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(144, 16), (256, 20)])
def test_more_of_k_than_a_block_takes(check, key_dim, value_dim):
    """Kernels of the delta rule that hold all of K do so in two blocks, of at most 128, and of K 256 only 8 columns."""
    size = {"key_dim": key_dim, "value_dim": value_dim, "tile": 16, "long": 32, "block_k": 64}
    check("dynamic", 35, 2, delta=True, cached=True, heads=1, **size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_heads_that_share_nothing(check, dtype):
    """With as many groups as heads, every head makes its own products of q and k; in two blocks of K and of V."""
    check("dynamic", 141, 4, cached=True, dtype=dtype, heads=2, groups=2)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_half_precision(check, delta):
    """States in two parts, products of 16 bits; several chunks, a cache and groups of heads."""
    check("dynamic", 35, 4, delta=delta, cached=True, dtype=torch.float16, heads=4, groups=2, tile=16, long=32)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("time", [1, 65])
def test_half_precision_at_odd_lengths(check, time, delta):
    """Documents that begin inside a chunk, and the smallest M."""
    documents = None if time == 1 else torch.tensor([0, 20, 21, 65])
    slots = 1 if time == 1 else 4
    check(
        "dynamic", time, slots, delta=delta, dtype=torch.float16, cu_seqlens=documents, gate=time > 1, tile=16, long=32
    )


def test_two_rows_without_decay(check):
    check("dynamic", 70, 4, batch=2, decay=False, cached=True, key_dim=16, value_dim=16)


def test_decode_after_prefill_equals_one_call(draw_inputs, make_plan):
    """Prefill in pieces, the boundary in the middle of a tile."""
    inputs = draw_inputs(50, 4, key_dim=16, value_dim=16).to(torch.float32)
    plan = make_plan("dynamic", inputs)
    whole, _ = multi_state_attention(**inputs.named(), plan=plan, backend="reference")
    with sizes(tile=16, long=32):
        first, cache = multi_state_attention(
            **inputs.tokens(0, 37).named(),
            plan=replace(plan, shift=plan.shift[:, :37]),
            return_cache=True,
            backend="triton",
        )
        second, _ = multi_state_attention(
            **inputs.tokens(37, 50).named(), plan=replace(plan, shift=plan.shift[:, 37:]), cache=cache, backend="triton"
        )
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-5, atol=1e-5)
