"""`dla_kernels.self_check` finds nothing wrong with what is right, and finds every kind of mistake."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dla_kernels import segment
from dla_kernels.self_check import (
    Finding,
    OpShape,
    check_convolution,
    check_gated_norm,
    check_l2_norm,
    check_op,
    check_rms_norm,
    check_scaled_heads,
    check_skip,
    check_softplus,
    check_swiglu,
    layers,
    op,
)

CPU = torch.device("cpu")
PLAIN = OpShape(heads=3, groups=1, key_dim=16, value_dim=16, slots=4)
DELTA = OpShape(heads=2, groups=2, key_dim=16, value_dim=24, slots=4, delta=True)
LAYERS = [
    (check_convolution, {"channels": 40, "width": 4, "bias": True}),
    (check_gated_norm, {"row": (48,), "gate_first": True, "groups": 2}),
    (check_gated_norm, {"row": (3, 24), "gate_first": False}),
    (check_l2_norm, {"heads": 3, "key_dim": 24}),
    (check_rms_norm, {"width": 40}),
    (check_scaled_heads, {"heads": 3, "value_dim": 24}),
    (check_skip, {"heads": 3, "value_dim": 24}),
    (check_softplus, {"slots": 12}),
    (check_swiglu, {"width": 40}),
]


def wrong(found: list[Finding]) -> list[str]:
    return [one.what for one in found if not one.is_right]


def expected(shape: OpShape, *, dynamic: bool) -> list[str]:
    """What is found of an op, in order."""

    def each(names: list[str]) -> list[str]:
        return [f"{of}{name}" for name in names for of in ("", "worst of ")]

    gate = ["d gate"] if dynamic else []
    read = ["output", "states", "d q", "d k", "d v", "d slot_weight", "d log_decay", *["d beta"][: shape.delta], *gate]
    names = [*each(read), "results that a second call changes (how many)"]
    decoded = each(["output token by token"])
    if not dynamic:
        return names + decoded
    through = [f"d {name} through boundaries" for name in ("k", "v", "threshold")] if shape.slots > 1 else []
    decided = ["scores (largest difference)", "decisions (how many differ)"]
    return [*decided, *names, *each(through), *decoded]


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [PLAIN, DELTA], ids=["plain", "delta"])
def test_the_torch_path_is_right(shape, dtype, documents):
    found = check_op(shape, CPU, dtype, documents=documents, tokens=330)
    assert [one.what for one in found] == expected(shape, dynamic=True)
    assert not wrong(found)
    assert any(one.error > 0 for one in found)  # compared with something else than itself


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("slots", [1, 64])
def test_few_tokens_and_one_slot(slots, tokens):
    shape = replace(DELTA, slots=slots)
    found = check_op(shape, CPU, torch.float32, tokens=tokens)
    assert [one.what for one in found] == expected(shape, dynamic=True)
    assert not wrong(found)


@pytest.mark.parametrize(("kind", "slots"), [("single", 1), ("fixed", 3), ("fenwick", 9)])
def test_plans_by_position_are_read_right(kind, slots):
    found = check_op(replace(DELTA, slots=slots), CPU, torch.float32, kind=kind, tokens=200)
    assert [one.what for one in found] == expected(DELTA, dynamic=False)
    assert not wrong(found)


@pytest.mark.parametrize("slots", [4, 32, 64])
def test_slots_of_a_fixed_memory_merge_in_calls_of_every_kind(slots, monkeypatch):
    read = op.multi_state_attention
    merging = set()

    def noted(q: Any, *args: Any, plan: Any, **options: Any) -> Any:
        if (plan.shift == slots - 2).any():
            merging.add(q.shape[1] == 1)
        return read(q, *args, plan=plan, **options)

    monkeypatch.setattr(op, "multi_state_attention", noted)
    assert not wrong(check_op(replace(PLAIN, slots=slots), CPU, torch.float32, kind="fixed", tokens=300))
    assert merging == {True, False}, "a token by itself, and many"


@pytest.mark.parametrize("slots", [4, 30])
def test_slots_of_a_dynamic_memory_merge_in_decoding(slots, monkeypatch):
    decode = op.dynamic_linear_attention
    held = []

    def noted(cache: Any = None, **options: Any) -> Any:
        o, after = decode(cache=cache, **options)
        if cache is not None:
            held.append((cache.segment.count.clone(), after.segment.count))
        return o, after

    monkeypatch.setattr(op, "dynamic_linear_attention", noted)
    for part in ("_decisions", "_reading", "_gates"):
        monkeypatch.setattr(op, part, lambda *given: [])
    assert not wrong(check_op(replace(PLAIN, slots=slots), CPU, torch.float32))
    assert any(((before > 0).all(-1) & (after[..., 0] == 1)).any() for before, after in held), "a boundary with no room"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("check", "sizes"), LAYERS)
def test_layers_in_torch_are_right(check, sizes, dtype):
    found = check(CPU, dtype, **sizes)
    assert len(found) >= 2
    assert not wrong(found)


@pytest.mark.parametrize(
    ("check", "sizes"),
    [one for one in LAYERS if one[0] in (check_convolution, check_gated_norm, check_rms_norm, check_skip)],
)
def test_layers_are_right_with_narrow_weights(check, sizes, monkeypatch):
    types = []
    compare = layers._compare
    monkeypatch.setattr(
        layers,
        "_compare",
        lambda function, inputs, *rest: types.append(inputs["weight"].dtype) or compare(function, inputs, *rest),
    )
    assert not wrong(check(CPU, torch.bfloat16, weights=torch.bfloat16, **sizes))
    assert types == [torch.bfloat16]


@pytest.mark.interpret
@pytest.mark.parametrize("shape", [PLAIN, DELTA], ids=["plain", "delta"])
def test_interpreted_kernels_are_right(shape):
    found = check_op(
        replace(shape, heads=2, groups=1 if shape is PLAIN else 2), CPU, torch.float32, tokens=20, backend="triton"
    )
    assert not wrong(found)
    assert any(one.error > 0 for one in found)


@pytest.mark.interpret
@pytest.mark.parametrize(("check", "sizes"), LAYERS)
def test_interpreted_layers_are_right(check, sizes):
    assert not wrong(check(CPU, torch.float32, backend="triton", **sizes))


def fast_only(function: Any, change: Any) -> Any:
    """`function`, with what its fast path returns changed."""

    def changed(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        tensors = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
        is_exact = "reference" in (*args, options.get("backend")) or tensors[0].dtype == torch.float64
        return result if is_exact else change(result)

    return changed


class ScaledGradient(torch.autograd.Function):
    """The identity, with a gradient that is a twentieth too large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
        return 1.05 * dx


def test_a_wrong_output_is_found(monkeypatch):
    monkeypatch.setattr(
        op,
        "multi_state_attention",
        fast_only(op.multi_state_attention, lambda r: (1.05 * r[0].detach() + 0 * r[0], r[1])),
    )
    found = wrong(check_op(PLAIN, CPU, torch.bfloat16, tokens=200))
    assert "output" in found
    assert "states" not in found


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setattr(
        op, "multi_state_attention", fast_only(op.multi_state_attention, lambda r: (ScaledGradient.apply(r[0]), r[1]))
    )
    found = wrong(check_op(PLAIN, CPU, torch.bfloat16, tokens=200))
    assert "output" not in found
    assert {"d q", "d slot_weight", "d gate"} <= set(found)


class GradientWithout(torch.autograd.Function):
    """The identity, with a gradient in which one token of one head is missing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
        dx = dx.clone()
        dx[:, 150, -1] = 0
        return dx


MANY = OpShape(heads=16, groups=16, key_dim=16, value_dim=16, slots=4)


def test_a_gradient_that_one_token_lacks_is_found(monkeypatch):
    """In 16-bit types it is lost in the error of the whole."""
    right = op.multi_state_attention

    def changed(q: Any, k: Any, v: Any, *args: Any, **options: Any) -> Any:
        return right(q, GradientWithout.apply(k) if k.dtype == torch.bfloat16 else k, v, *args, **options)

    monkeypatch.setattr(op, "multi_state_attention", changed)
    found = check_op(MANY, CPU, torch.bfloat16, kind="fixed", tokens=600)
    assert wrong(found) == ["worst of d k"]


def test_an_output_of_another_head_is_found(monkeypatch):
    """For one tile of tokens."""

    def swap(result: Any) -> Any:
        o = result[0].clone()
        o[:, 512:528, 3] = result[0][:, 512:528, 4]
        return o, result[1]

    monkeypatch.setattr(op, "multi_state_attention", fast_only(op.multi_state_attention, swap))
    found = wrong(check_op(MANY, CPU, torch.bfloat16, kind="fixed", tokens=600))
    assert "worst of output" in found
    assert "worst of d v" in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [PLAIN, DELTA], ids=["plain", "delta"])
@pytest.mark.parametrize(
    "mistake", ["the oldest slot is read as the next one", "decay comes a token late", "a chunk begins without decay"]
)
def test_mistakes_that_only_a_long_memory_shows_are_found(monkeypatch, mistake, shape, dtype):
    right = op.multi_state_attention

    def changed(q: Any, k: Any, v: Any, slot_weight: Any, *, log_decay: Any, **options: Any) -> Any:
        if q.dtype != torch.float64 and "oldest" in mistake:
            slot_weight = torch.cat((slot_weight[..., :-1], slot_weight[..., -2:-1]), -1)
        if q.dtype != torch.float64 and "late" in mistake:
            log_decay = log_decay.roll(1, 1)
        if q.dtype != torch.float64 and "without" in mistake:
            log_decay = log_decay * (torch.arange(log_decay.shape[1]) % 512 > 0)[:, None]
        return right(q, k, v, slot_weight, log_decay=log_decay, **options)

    monkeypatch.setattr(op, "multi_state_attention", changed)
    shape = replace(shape, heads=4, groups=4, slots=12)
    found = wrong(check_op(shape, CPU, dtype, kind="fixed"))
    assert {"worst of d slot_weight", *(() if shape.delta else ("worst of output",))} <= set(found)


def test_reading_past_the_last_token_is_found(monkeypatch):
    """As a kernel does that does not mask its last tile: even where a weight of zero follows."""
    right = op.multi_state_attention

    def changed(q: Any, k: Any, v: Any, *args: Any, **options: Any) -> Any:
        if v.dtype == torch.float64 or v.shape[1] < 100 or options.get("backend") == "reference":
            return right(q, k, v, *args, **options)
        behind = v.as_strided(v[:, :1].shape, v[:, :1].stride(), v.storage_offset() + v.numel()).detach()
        o, cache = right(q, k, v, *args, **options)
        return torch.cat((o[:, :-1], o[:, -1:] + 0 * behind), 1), cache

    monkeypatch.setattr(op, "multi_state_attention", changed)
    assert "output" in wrong(check_op(PLAIN, CPU, torch.float32, kind="fixed", tokens=100))


def test_nan_is_never_right(monkeypatch):
    monkeypatch.setattr(
        op, "multi_state_attention", fast_only(op.multi_state_attention, lambda r: (r[0] * float("nan"), r[1]))
    )
    found = check_op(PLAIN, CPU, torch.float32, kind="fixed", tokens=100)
    assert {"output", "d q", "d v"} <= set(wrong(found))


def test_results_that_change_from_call_to_call_are_found(monkeypatch):
    calls = iter(range(1000))
    monkeypatch.setattr(
        op,
        "multi_state_attention",
        fast_only(op.multi_state_attention, lambda r: (r[0] * (1 + 1e-6 * next(calls)), r[1])),
    )
    assert "results that a second call changes (how many)" in wrong(
        check_op(PLAIN, CPU, torch.float32, kind="fixed", tokens=100)
    )


def test_a_wrong_decision_is_found(monkeypatch):
    def flip(plan: Any) -> Any:
        shift = plan.shift.clone()
        shift[0, 50] = torch.where(shift[0, 50] == -1, shift.max(), -1)
        return replace(plan, shift=shift)

    monkeypatch.setattr(op, "segment", fast_only(segment, flip))
    found = wrong(check_op(PLAIN, CPU, torch.float32, tokens=200))
    assert found == ["decisions (how many differ)"]


def test_wrong_gradients_of_boundaries_are_found(monkeypatch):
    monkeypatch.setattr(
        op,
        "segment",
        fast_only(
            segment, lambda plan: replace(plan, gate=None if plan.gate is None else ScaledGradient.apply(plan.gate))
        ),
    )
    found = wrong(check_op(PLAIN, CPU, torch.bfloat16, tokens=200))
    assert found == [f"d {name} through boundaries" for name in ("k", "v", "threshold")]  # none is far off by itself


def test_wrong_decoding_is_found(monkeypatch):
    monkeypatch.setattr(
        op, "dynamic_linear_attention", fast_only(op.dynamic_linear_attention, lambda r: (1.1 * r[0], r[1]))
    )
    off = ["output token by token", "worst of output token by token"]
    assert wrong(check_op(PLAIN, CPU, torch.float32, tokens=200)) == off


@pytest.mark.parametrize("kind", ["fixed", "fenwick"])
def test_wrong_decoding_for_a_plan_is_found(monkeypatch, kind):
    right = op.multi_state_attention

    def changed(*args: Any, cache: Any = None, **options: Any) -> Any:
        o, after = right(*args, cache=cache, **options)
        return o if cache is None else 1.1 * o, after

    monkeypatch.setattr(op, "multi_state_attention", changed)
    off = ["output token by token", "worst of output token by token"]
    assert wrong(check_op(PLAIN, CPU, torch.float32, kind=kind, tokens=200)) == off


def test_a_wrong_layer_is_found(monkeypatch):
    monkeypatch.setattr(layers, "swiglu", fast_only(layers.swiglu, ScaledGradient.apply))
    assert wrong(check_swiglu(CPU, torch.float32, width=8)) == ["d x", "worst of d x"]


def test_inputs_that_leave_no_doubt_are_found_at_one_head():
    """With one head, all inputs with a doubtful decision must be drawn anew."""
    assert not wrong(check_op(replace(PLAIN, heads=1), CPU, torch.float32, tokens=1000))
