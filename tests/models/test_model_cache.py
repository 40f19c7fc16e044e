"""A model that goes on from a cache gives what one call gives: token by token, and in pieces."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from dla_kernels import dynamic_linear_attention
from dla_train.models import AttentionConfig, LanguageModel, ModelCache, ModelConfig, initialize, memory
from dla_train.models.cache import _tensors
from dla_train.models.loss import linear_cross_entropy
from tests.models.conftest import VOCAB


@torch.no_grad()
def in_pieces(model: Any, x: torch.Tensor, pieces: list[int]) -> tuple[torch.Tensor, ModelCache]:
    outputs, cache = [], None
    for piece in x.split(pieces, 1):
        logits, cache = model(piece, cache=cache, return_cache=True)
        outputs.append(logits)
    assert cache is not None
    return torch.cat(outputs, 1), cache


def test_token_by_token_equals_one_call(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x = tokens(2, 40)
    logits, cache = in_pieces(model, x, [1] * 40)
    torch.testing.assert_close(logits, model(x)[0])
    assert cache.tokens == 40
    assert cache.batch == 2


@pytest.mark.parametrize("pieces", [[17, 1, 2, 20], [3, 37], [39, 1]], ids=str)
def test_pieces_equal_one_call(make_model: Any, tokens: Any, any_case: tuple[str, str], pieces: list[int]) -> None:
    model = make_model(*any_case)
    x = tokens(2, 40)
    torch.testing.assert_close(in_pieces(model, x, pieces)[0], model(x)[0])


def test_linear_caches_do_not_grow(make_model: Any, tokens: Any, linear_case: tuple[str, str]) -> None:
    model = make_model(*linear_case)
    x = tokens(1, 60)
    sizes = [in_pieces(model, x[:, :time], [time])[1].bytes for time in (1, 2, 9, 60)]
    assert len(set(sizes)) == 1


def test_attention_caches_grow_with_every_token(make_model: Any, tokens: Any) -> None:
    model = make_model("attention")
    x = tokens(1, 60)
    sizes = [in_pieces(model, x[:, :time], [time])[1].bytes for time in (1, 2, 60)]
    assert sizes == [sizes[0], 2 * sizes[0], 60 * sizes[0]]


def test_a_cache_is_not_changed_by_use(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x = tokens(2, 20)
    cache = in_pieces(model, x[:, :12], [12])[1]
    with torch.no_grad():
        first = model(x[:, 12:], cache=cache, return_cache=True)[0]
        again = model(x[:, 12:], cache=cache, return_cache=True)[0]
    assert torch.equal(first, again)


def test_rows_of_a_cache_can_be_taken_and_repeated(make_model: Any, tokens: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case)
    x = tokens(3, 20)
    cache = in_pieces(model, x[:, :12], [12])[1]
    index = torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        logits = model(x[index, 12:], cache=cache.rows(index))[0]
    torch.testing.assert_close(logits, model(x[index])[0][:, 12:])


def test_what_does_not_fit_is_refused(make_model: Any, tokens: Any) -> None:
    model = make_model("mamba2")
    cache = in_pieces(model, tokens(2, 5), [5])[1]
    with pytest.raises(ValueError, match="tokens has 3 rows and the cache 2 sequences"):
        model(tokens(3, 1), cache=cache)
    with pytest.raises(ValueError, match="cu_seqlens was given together with a cache"):
        model(tokens(1, 5), cu_seqlens=torch.tensor([0, 2, 5]), return_cache=True)
    with pytest.raises(ValueError, match=r"tokens has shape \(5,\)"):
        model(tokens(1, 5)[0])
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 0\)"):
        model(tokens(1, 0))


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_dynamic_models_decode_by_one_call_per_layer_and_token(
    make_model: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On a GPU that call is one launch; a hook that wants to see plans gets them all the same."""
    model, x = make_model(kind, "dynamic"), tokens(2, 9)
    calls: list[int] = []

    def counted(q: torch.Tensor, *rest: Any, **options: Any) -> Any:
        calls.append(q.shape[1])
        return dynamic_linear_attention(q, *rest, **options)

    monkeypatch.setattr(memory, "dynamic_linear_attention", counted)
    logits, _ = in_pieces(model, x, [5, 1, 1, 1, 1])
    assert calls == [1] * 4 * len(model.blocks)
    seen: list[Any] = []
    hook = model.blocks[0].mixer.memory.register_forward_hook(lambda _module, _inputs, plan: seen.append(plan))
    assert torch.equal(in_pieces(model, x, [5, 1, 1, 1, 1])[0], logits)
    hook.remove()
    assert len(seen) == 5


@pytest.mark.interpret
@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_dynamic_models_decode_by_the_fused_step(
    make_model: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model, x = make_model(kind, "dynamic").float(), tokens(2, 10)
    expected, _ = in_pieces(model, x, [8, 1, 1])
    steps: list[int] = []

    def fused(*arguments: Any, **options: Any) -> Any:
        steps.append(1)
        return dynamic_linear_attention(*arguments, **options, backend="triton")

    monkeypatch.setattr(memory, "dynamic_linear_attention", fused)
    torch.testing.assert_close(in_pieces(model, x, [8, 1, 1])[0], expected)
    assert len(steps) == 2 * len(model.blocks)


def test_a_cache_of_another_model_is_refused(make_model: Any, tokens: Any) -> None:
    mamba, attention = make_model("mamba2", "dynamic"), make_model("attention", "single")
    _, cache = attention.hidden_states(tokens(1, 4), return_cache=True)
    with pytest.raises(ValueError, match=r"that of another model: it has \d layers of AttentionCache, and this model"):
        mamba.hidden_states(tokens(1, 1), cache=cache)
    _, cache = mamba.hidden_states(tokens(1, 4), return_cache=True)
    short = dataclasses.replace(cache, layers=cache.layers[:1])
    with pytest.raises(ValueError, match="it has 1 layers of LinearCache, and this model 2 of LinearCache"):
        mamba.hidden_states(tokens(1, 1), cache=short)


def test_an_attention_cache_keeps_no_more_than_it_says(make_model: Any, tokens: Any) -> None:
    _, cache = make_model("attention", "single").hidden_states(tokens(2, 9), return_cache=True)
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in _tensors(cache.layers)}
    assert sum(held.values()) == cache.bytes


def test_tied_weights_stay_tied_on_their_way_from_the_meta_device() -> None:
    config = ModelConfig(vocab_size=VOCAB, hidden=16, layers=1, mixer=AttentionConfig(heads=2), tie_embeddings=True)
    with torch.device("meta"):
        model = LanguageModel(config)
    initialize(model.to_empty(device="cpu"), 0)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, initialize(LanguageModel(config), 0).head.weight)


def test_validation_makes_no_gradient() -> None:
    hidden, weight = torch.randn(6, 8), torch.randn(5, 8, requires_grad=True)
    targets = torch.arange(6) % 5
    with torch.no_grad(), torch.profiler.profile() as seen:
        loss = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, targets).detach())
    assert not any("softmax" in event.key for event in seen.key_averages())


def test_a_loss_over_many_tokens_has_a_gradient_in_float16() -> None:
    hidden = torch.full((16_384, 8), 8.0, dtype=torch.float16)
    weight = torch.zeros(3, 8, dtype=torch.float16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(16_384, dtype=torch.int64)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad[0].float(), torch.full((8,), -16 / 3), rtol=1e-2, atol=0)
