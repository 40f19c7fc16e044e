"""Every refusal says which argument, what was given and what is allowed."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dla_kernels import (
    arguments,
    dynamic_linear_attention,
    fenwick_plan,
    fixed_plan,
    multi_state_attention,
    segment,
    single_plan,
)
from dla_kernels.arguments import resolve_backend

B, T, G, H, K, V, M = 2, 6, 2, 4, 5, 3, 4


def cut(x, dim=1):
    return x.narrow(dim, 0, x.shape[dim] - 1)


def refused(words, call, *args, **kwargs):
    with pytest.raises(ValueError, match=words[0]) as caught:
        call(*args, **kwargs)
    for word in words:
        assert re.search(rf"(?<![\w.]){re.escape(word)}(?![\w])", str(caught.value)), f"{word!r} not in: {caught.value}"


@pytest.fixture
def given():
    """Sound arguments of `multi_state_attention`."""
    return {
        "q": torch.ones(B, T, G, K),
        "k": torch.ones(B, T, G, K),
        "v": torch.ones(B, T, H, V),
        "slot_weight": torch.ones(B, T, H, M),
        "plan": fixed_plan(B, T, H, block=2, capacity=M),
        "log_decay": torch.zeros(B, T, H),
        "beta": torch.ones(B, T, H),
    }


def test_sound_arguments_are_accepted(given):
    multi_state_attention(**given)
    segment(given["k"], given["v"], M)


NAMES = ["q", "k", "v", "slot_weight", "log_decay", "beta"]
LAYOUTS = {"q": "[B, T, G, K]", "k": "[B, T, G, K]", "v": "[B, T, H, V]", "slot_weight": "[B, T, H, M]"}


@pytest.mark.parametrize("name", NAMES)
def test_number_of_dimensions(given, name):
    flat = given[name].flatten(0, 1)
    layout = LAYOUTS.get(name, "[B, T, H]")
    refused(
        [name, f"{given[name].ndim} dimensions", str(tuple(flat.shape)), layout],
        multi_state_attention, **given | {name: flat},
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_types(given, name, dtype):
    refused(
        [name, str(dtype), "float64", "float32", "bfloat16", "float16"],
        multi_state_attention, **given | {name: given[name].to(dtype)},
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_devices(given, name):
    elsewhere = given[name].to("meta")
    refused([name, "meta", "cpu", "one device"], multi_state_attention, **given | {name: elsewhere})


@pytest.mark.parametrize("function", [multi_state_attention, segment])
def test_keys_and_values_fit(given, function):
    def refuse(words, **changed):
        arguments = given | changed
        if function is segment:
            arguments = {"k": arguments["k"], "v": arguments["v"], "capacity": M}
        refused(words, function, **arguments)

    refuse(["v", "k", f"({B}, {T - 1})", f"({B}, {T})"], v=cut(given["v"]))
    refuse(["v's heads, 3", "k's groups, 2", "multiple"], v=cut(given["v"], 2))
    refuse(["k", "no tokens", "at least one"], **{name: given[name][:, :0] for name in ("q", "k", "v")})


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_are_no_tensors(given, name):
    refused([name, "ndarray", "a tensor"], multi_state_attention, **given | {name: given[name].numpy()})


def test_sizes_of_zero(given):
    keys = {name: given[name][..., :0] for name in ("q", "k")}
    refused(["k", "no channels", f"({B}, {T}, {G}, 0)", "at least one"], multi_state_attention, **given | keys)
    refused(["v", "no channels", "at least one"], segment, given["k"], given["v"][..., :0], M)
    refused(["v", "no heads", "at least one"], segment, given["k"], given["v"][:, :, :0], M)


def test_tensors_without_numbers(given):
    """Not the error of a copy from there, after a warning that the copy is slow."""
    k, v = (given[name].to("meta") for name in ("k", "v"))
    refused(["k", "v", "meta", "numbers"], segment, k, v, M)


def test_scale(given):
    """A learned one would get a gradient from some backends only."""
    inputs = {name: given[name] for name in ("q", "k", "v", "slot_weight")}
    for call in (lambda **kwargs: multi_state_attention(**given, **kwargs),
                 lambda **kwargs: dynamic_linear_attention(**inputs, capacity=M, **kwargs)):  # fmt: skip
        refused(["scale", "tensor", "number"], call, scale=torch.tensor(0.5, requires_grad=True))


def test_shapes_of_the_others(given):
    sizes = str((B, T, H))
    refused(["q", str((B, T, G, K - 1)), str((B, T, G, K))], multi_state_attention, **given | {"q": cut(given["q"], 3)})
    wrong = cut(given["slot_weight"], 2)
    refused(["slot_weight", str(tuple(wrong.shape)), sizes], multi_state_attention, **given | {"slot_weight": wrong})
    for name in ("log_decay", "beta"):
        wrong = cut(given[name])
        refused([name, str(tuple(wrong.shape)), sizes], multi_state_attention, **given | {name: wrong})


def test_plan_fits(given):
    plan = fixed_plan(B, T - 1, H, block=2, capacity=M)
    refused(["plan", str((B, T - 1, H)), str((B, T, H))], multi_state_attention, **given | {"plan": plan})
    plan = fixed_plan(B, T, H, block=2, capacity=M + 1)
    refused(
        ["slot_weight", f"is {M};", "plan", f"capacity of {M + 1}"], multi_state_attention, **given | {"plan": plan}
    )
    plan = fixed_plan(B, T, H, block=2, capacity=M, device="meta")
    refused(["plan", "meta", "cpu", "device='cpu'"], multi_state_attention, **given | {"plan": plan})


def test_documents_of_plan_and_reader_are_the_same(given):
    """A plan without them read with them would divide by what it saw before; its cache would not fit itself."""
    one = {name: x[:1] for name, x in given.items() if isinstance(x, torch.Tensor)}
    documents = torch.tensor([0, 2, T])
    words = ["plan", "sequences is 1", "2", "cu_seqlens"]
    refused(words, multi_state_attention, **one, plan=segment(one["k"], one["v"], M), cu_seqlens=documents)
    packed = segment(one["k"], one["v"], M, cu_seqlens=documents)
    refused(["plan", "sequences is 2", "1", "cu_seqlens"], multi_state_attention, **one, plan=packed)


@pytest.mark.parametrize("call", ["read", "segment", "fixed_plan", "fenwick_plan"])
def test_documents(given, call):
    one = {name: x[:1] for name, x in given.items() if isinstance(x, torch.Tensor)}
    one["plan"] = fixed_plan(1, T, H, block=2, capacity=M)

    def refuse(words, cu_seqlens, batch=1):
        source = one if batch == 1 else given
        if call == "read":
            refused(words, multi_state_attention, **source, cu_seqlens=cu_seqlens)
        elif call == "segment":
            refused(words, segment, source["k"], source["v"], M, cu_seqlens=cu_seqlens)
        elif call == "fixed_plan":
            refused(words, fixed_plan, batch, T, H, cu_seqlens=cu_seqlens)
        else:
            refused(words, fenwick_plan, batch, T, H, cu_seqlens=cu_seqlens)

    refuse(["cu_seqlens", "list", "tensor"], [0, T])
    refuse(["cu_seqlens", "batch of 2", "batch of 1"], torch.tensor([0, T]), batch=2)
    refuse(["cu_seqlens", "torch.float32", "int32 or int64"], torch.tensor([0.0, T]))
    refuse(["cu_seqlens", "(1, 2)", "vector"], torch.tensor([[0, T]]))
    refuse(["cu_seqlens", "(1,)", "N + 1"], torch.tensor([0]))
    refuse(["cu_seqlens", "from 1", f"from 0 to {T}"], torch.tensor([1, T]))
    refuse(["cu_seqlens", f"to {T - 1}", f"from 0 to {T}"], torch.tensor([0, T - 1]))
    refuse(["cu_seqlens", f"[0, 2, 2, {T}]", "no empty document"], torch.tensor([0, 2, 2, T]))
    refuse(["cu_seqlens", f"[0, 4, 2, {T}]", "grow"], torch.tensor([0, 4, 2, T]))


@pytest.mark.parametrize("capacity", [2.0, "2", None, torch.tensor(2)], ids=str)
def test_capacity_is_a_whole_number(given, capacity):
    refused(["capacity", repr(capacity), "whole number"], segment, given["k"], given["v"], capacity)
    segment(given["k"], given["v"], np.int64(2))


@pytest.mark.parametrize("capacity", [0, -3])
def test_capacity(given, capacity):
    refused(["capacity", str(capacity), "at least 1"], segment, given["k"], given["v"], capacity)
    refused(["capacity", str(capacity), "at least 1"], fixed_plan, B, T, H, capacity=capacity)
    refused(["capacity", str(capacity), "at least 1"], fenwick_plan, B, T, H, capacity=capacity)


@pytest.mark.parametrize("threshold", [-0.1, 2.5, float("nan")])
def test_threshold_number(given, threshold):
    refused(["threshold", str(threshold), "[0, 2]"], segment, given["k"], given["v"], M, threshold)


@pytest.mark.parametrize("threshold", [[1.0] * H, np.ones(H), "1", None], ids=str)
def test_thresholds_are_no_lists(given, threshold):
    refused(["threshold", repr(threshold), f"tensor [{H}]"], segment, given["k"], given["v"], M, threshold)
    segment(given["k"], given["v"], M, np.float32(1.0))


def test_threshold_tensor(given):
    wrong = torch.ones(H + 1)
    refused(["threshold", f"({H + 1},)", f"[{H}]"], segment, given["k"], given["v"], M, wrong)
    elsewhere = torch.ones(H, device="meta")
    refused(["threshold", "meta", "cpu", "one device"], segment, given["k"], given["v"], M, elsewhere)


def test_gate(given):
    refused(["gate", "'soft'", "'hard'", "'straight_through'"], segment, given["k"], given["v"], M, gate="soft")
    for width in (0.0, -1.0, float("nan"), float("inf")):
        refused(
            ["gate_width", str(width), "above 0"],
            segment, given["k"], given["v"], M, gate="straight_through", gate_width=width,
        )  # fmt: skip


def test_backend(given):
    for call in (lambda: segment(given["k"], given["v"], M, backend="cuda"),
                 lambda: multi_state_attention(**given, backend="cuda")):  # fmt: skip
        refused(["backend", "'cuda'", "auto", "reference", "torch"], call)


def test_caches_that_do_not_fit(given):
    _, cache = multi_state_attention(**given, return_cache=True)
    expected = (B, H, M, K, V)
    for wrong in (cache.state[:1], cache.state[:, :1], cache.state[:, :, :1], cache.state[..., :1]):
        refused(
            ["cache", str(tuple(wrong.shape)), str(expected)],
            multi_state_attention, **given, cache=replace(cache, state=wrong),
        )  # fmt: skip
    refused(["cache", "no segmentation"], segment, given["k"], given["v"], M, cache=cache)
    plan = segment(given["k"], given["v"], M)
    _, cache = multi_state_attention(**given | {"plan": plan}, return_cache=True)
    refused(
        ["cache", str((B, H, M)), str((B, H, M + 1))], segment, given["k"], given["v"], M + 1, cache=cache
    )  # fmt: skip
    for backend in ("reference", "torch"):
        other = torch.zeros(B, T, given["k"].shape[2], K + 1), torch.zeros(B, T, H, V + 3)
        refused(
            ["cache", str((B, H, K, V)), str((B, H, K + 1, V + 3))], segment, *other, M, cache=cache, backend=backend
        )
    cu_seqlens = torch.tensor([0, 2, T])
    one = {name: x[:1] for name, x in given.items() if isinstance(x, torch.Tensor)}
    refused(["cache", str((B, H, M)), str((1, H, M))], segment, one["k"], one["v"], M, cache=cache)
    packed = segment(one["k"], one["v"], M, cu_seqlens=cu_seqlens, cache=cache)  # two documents: two sequences
    assert packed.final.count.shape == (2, H, M)


@pytest.mark.parametrize("name", ["batch", "time", "heads"])
@pytest.mark.parametrize("make", [single_plan, fixed_plan, fenwick_plan])
def test_sizes_of_positional_plans(make, name):
    refused([name, "0", "at least 1"], make, **{"batch": B, "time": T, "heads": H} | {name: 0})


def test_block():
    refused(["block", "0", "at least 1"], fixed_plan, B, T, H, block=0)


@pytest.mark.parametrize("make", [fixed_plan, fenwick_plan])
def test_start(make):
    refused(["start", "-1", "at least 0"], make, B, T, H, start=-1)
    refused(["start", "-1", "at least 0"], make, B, T, H, start=np.int64(-1))
    for start in (1.5, torch.tensor([1.5, 2.0])):
        refused(["start", "torch.float32", "int64"], make, B, T, H, start=start)
    refused(["start", "(3,)", f"[{B}]"], make, B, T, H, start=torch.zeros(3, dtype=torch.long))
    refused(["start", "(2, 1)", f"[{B}]"], make, B, T, H, start=torch.zeros(2, 1, dtype=torch.long))
    refused(["start", "(2,)", "[3]"], make, 1, T, H, cu_seqlens=torch.tensor([0, 1, 2, T]), start=torch.tensor([0, 1]))


def test_an_empty_batch_has_an_empty_result(given):
    for backend in ("reference", "torch"):
        assert segment(given["k"][:0], given["v"][:0], M, backend=backend).shift.shape == (0, T, H)
        empty = {name: x[:0].requires_grad_() for name, x in given.items() if isinstance(x, torch.Tensor)}
        o, cache = dynamic_linear_attention(**empty, capacity=M, return_cache=True, backend=backend)
        assert o.shape == (0, T, H, V)
        assert cache.state.shape == (0, H, M, K, V)
        o.sum().backward()
        assert empty["q"].grad.shape == (0, T, G, K)
        assert dynamic_linear_attention(**empty, capacity=M, cache=cache, backend=backend)[0].shape == (0, T, H, V)
    with pytest.raises(ValueError, match="k has no groups"):
        segment(given["k"][:, :, :0], given["v"], M)


def test_the_torch_backend_differentiates_under_autocast(draw_inputs):
    inputs = draw_inputs(130, 3, delta=False, batch=1, heads=2, groups=1, key_dim=5, value_dim=6).to(torch.float32)
    leaves = {name: x.requires_grad_() for name, x in inputs.named().items()}

    def gradients():
        o, _ = dynamic_linear_attention(**leaves, capacity=3, threshold=0.4, backend="torch")
        return torch.autograd.grad(o.square().sum(), [leaves["v"], leaves["slot_weight"]])

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.fixture
def unknown_gpus():
    """Nothing is known yet of this machine's GPUs, and nothing afterwards."""
    arguments._obstacle_on_gpu.cache_clear()
    yield
    arguments._obstacle_on_gpu.cache_clear()


@pytest.mark.parametrize(("capability", "backend"), [((7, 5), "torch"), ((8, 0), "triton"), ((12, 0), "triton")])
def test_auto_takes_triton_on_gpus_that_it_compiles_for(unknown_gpus, monkeypatch, capability, backend):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda:1"), dtype=torch.bfloat16, shape=(1, 8, 2, 16))
    assert resolve_backend("auto", on_gpu, on_gpu, 4) == backend
    on_gpu.shape = (0, 8, 2, 16)
    assert resolve_backend("auto", on_gpu, on_gpu, 4) == "torch", "an empty batch has nothing to launch"
    on_gpu.shape = (1, 8, 2, 16)
    if backend == "torch":
        message = "backend is 'triton', but cuda:1 is an sm_75; it needs a GPU of sm_80 .Ampere. or later"
        with pytest.raises(ValueError, match=message):
            resolve_backend("triton", on_gpu, on_gpu, 4)
