"""Models on a GPU's kernels: compiled for one that is not here, executed on the CPU (tests/kernels/executor/).

Training and generation as on a GPU, with what PyTorch does around the kernels: autocast to bfloat16, packed documents,
the straight-through gate, a cache handed on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dla_train.models import generate
from dla_train.models.cache import ModelCache
from tests.kernels.executor.launch import executing
from tests.models.conftest import LINEAR_CASES, VOCAB

pytestmark = pytest.mark.xdist_group("executed models")
TOKENS = 90


def gradients(model: Any, precision: str, documents: Tensor | None = None) -> dict[str, Tensor]:
    """The loss of one window, and its gradients."""
    tokens = torch.randint(VOCAB, (1, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits, _ = model(tokens[:, :-1], cu_seqlens=documents)
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return {"loss": loss.detach()} | {
        name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None
    }


def error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("case", LINEAR_CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_training_step(make_model: Any, case: tuple[str, str]) -> None:
    """In float32 as `torch` does it; under autocast no further from that than `torch` is under autocast.

    Roundings change decisions of a dynamic memory whose scores are near the threshold, other ones in each path, and
    with them single gradients by any amount; so there all gradients are compared at once.
    """
    model = make_model(*case, dtype=torch.float32)
    exact, rounded = gradients(model, "float32"), gradients(model, "bf16")
    with executing("sm_90") as ran:
        found, found_rounded = gradients(model, "float32"), gradients(model, "bf16")
    assert any("read" in kernel for kernel in ran)
    assert found.keys() == found_rounded.keys() == exact.keys()
    for name, x in exact.items():
        assert error(found[name], x) < 1e-4, name
    sets = [list(exact)] if case[1] == "dynamic" else [[name] for name in exact]
    for names in sets:
        ours, theirs, right = (
            torch.cat([results[name].flatten() for name in names]) for results in (found_rounded, rounded, exact)
        )
        assert error(ours, right) < 1.5 * error(theirs, right) + 0.03, names


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_packed_documents(make_model: Any, kind: str) -> None:
    model = make_model(kind, "dynamic", dtype=torch.float32)
    documents = torch.tensor([0, 7, 50, TOKENS])
    exact = gradients(model, "float32", documents)
    with executing("sm_90"):
        found = gradients(model, "float32", documents)
    for name, x in exact.items():
        torch.testing.assert_close(found[name], x, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", LINEAR_CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_generation(make_model: Any, tokens: Any, case: tuple[str, str]) -> None:
    """Prefill, then token by token, which is one launch of the op."""
    model = make_model(*case, dtype=torch.float32)
    prompt = tokens(2, 20)
    expected = generate(model, prompt, 6, temperature=0)
    with executing("sm_90") as ran:
        assert torch.equal(generate(model, prompt, 6, temperature=0), expected)
    assert [name for name in ran if name.startswith("decode")] == [
        "decode_kernel" if case[1] == "dynamic" else "decode_planned_kernel"
    ]


def test_caches_that_lag_are_joined_and_chosen_from(make_model: Any, tokens: Any) -> None:
    model = make_model("mamba2", "dynamic", dtype=torch.float32)
    texts = [tokens(1, 9), tokens(1, 7)]
    whole = [model.hidden_states(torch.cat([text, text[:, :1]], 1))[0][:, -1] for text in texts]
    with executing("sm_90"), torch.no_grad():
        parts = []
        for text in texts:
            _, cache = model.hidden_states(text[:, :5], return_cache=True)
            for t in range(5, text.shape[1]):
                _, cache = model.hidden_states(text[:, t : t + 1], cache=cache.donated(), return_cache=True)
            parts.append(cache)
        assert parts[0].layers[0].slots.lag is not None
        _, kept = model.hidden_states(texts[0], return_cache=True)
        both = ModelCache.joined([parts[0], kept]).rows(torch.tensor([1, 0]))
        following = torch.cat([texts[0][:, :1]] * 2)
        found = model.hidden_states(following, cache=both)[0][:, -1]
        lagging = model.hidden_states(texts[1][:, :1], cache=parts[1])[0][:, -1]
    torch.testing.assert_close(found, torch.cat([whole[0]] * 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lagging, whole[1], rtol=1e-4, atol=1e-5)
