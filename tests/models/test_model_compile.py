"""Models compile; the only graph breaks are those of the op's paths that run in torch and numba."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def op_stand_in(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: object, **options: Any
) -> tuple[Tensor, None]:
    """Something cheap that depends on every input."""
    read = (q * k).sum((-2, -1))[..., None, None] + slot_weight.sum(-1, keepdim=True)
    for name in ("log_decay", "beta"):
        if options.get(name) is not None:
            read = read + options[name][..., None]
    return (v * read).to(v.dtype), None


def plan_stand_in(*args: object, **options: object) -> None:
    return None


@pytest.mark.parametrize(
    ("kind", "memory"),
    [("mamba2", "dynamic"), ("gated_deltanet", "dynamic"), ("attention", "single"), ("sliding", "single")],
)
def test_no_graph_break_outside_the_op(
    make_model: Any, tokens: Any, kind: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dla_train.models.memory.multi_state_attention", op_stand_in)
    for plan in ("segment", "fixed_plan", "fenwick_plan", "single_plan"):
        monkeypatch.setattr(f"dla_train.models.memory.{plan}", plan_stand_in)
    model = make_model(kind, memory, layers=1)
    x, targets = tokens(2, 9), tokens(2, 9, seed=1)
    torch.compiler.reset()
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    losses = [compiled(x, targets), model.loss(x, targets)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for name, one, other in zip(names, *gradients, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


# Each mixer, each memory, and the product's own with both: the code of a mixer does not depend on its memory, and the
# op where they meet is no part of a graph. Compiling takes seconds, so the other pairs are slow tests.
MEMORIES = ["single", "fixed", "fenwick", "dynamic"]
QUICK = [("mamba2", "single"), ("mamba2", "dynamic")] + [("gated_deltanet", memory) for memory in MEMORIES[1:]]
EVERYTHING = [
    pytest.param(kind, memory, marks=[] if (kind, memory) in QUICK else pytest.mark.slow)
    for kind in ("mamba2", "gated_deltanet")
    for memory in MEMORIES
]


@pytest.mark.parametrize(("kind", "memory"), EVERYTHING)
def test_compiled_blocks_compute_the_same(make_model: Any, tokens: Any, kind: str, memory: str) -> None:
    model = make_model(kind, memory, layers=2)
    compiled = copy.deepcopy(model)
    compiled.compile_blocks(backend="aot_eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for seed in (1, 2):  # the second call finds the graphs of the first
        x, targets = tokens(2, 70, seed=seed), tokens(2, 70, seed=seed + 2)
        losses = [one.loss(x, targets) for one in (model, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss in losses:
            loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "nothing was compiled"
    for (name, one), (same_name, other) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        assert name == same_name
        torch.testing.assert_close(other.grad, one.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("kind", "memory"), [("mamba2", "dynamic"), ("gated_deltanet", "dynamic")])
def test_the_known_graph_breaks(make_model: Any, tokens: Any, kind: str, memory: str) -> None:
    model = make_model(kind, memory, layers=1)
    torch.compiler.reset()
    found = torch._dynamo.explain(model.loss)(tokens(2, 70), tokens(2, 70, seed=1))
    places = {_place(reason) for reason in found.break_reasons}
    assert places == {"segmentation/op.py", "reader/op.py"}


@pytest.mark.timeout(300)
def test_blocks_stay_compiled_where_documents_of_many_lengths_are_read(make_model: Any, tokens: Any) -> None:
    """In training and in validation of a hybrid, where most functions are outside of the graphs."""
    model = make_model("mamba2+hybrid", "dynamic", dtype=torch.float32)
    model.compile_blocks(backend="aot_eager")
    torch.compiler.reset()
    x, targets = tokens(1, 40), tokens(1, 40, seed=1)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for is_training in (True, False, True):
            for starts in ([0, 40], [0, 7, 40], [0, 3, 20, 21, 40]):
                with torch.set_grad_enabled(is_training):
                    model.loss(x, targets, cu_seqlens=torch.tensor(starts))


def _place(reason: Any) -> str:
    """The last line of a break's stack outside the decorator that makes it."""
    frames = [Path(frame.filename) for frame in reason.user_stack]
    last = next(path for path in reversed(frames) if path.name not in ("compiled_graphs.py", "autocast.py"))
    return f"{last.parent.name}/{last.name}"
