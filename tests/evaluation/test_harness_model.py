"""The model as lm-evaluation-harness sees it: likelihoods, windows, texts up to a stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer

from dla_data.tokenizer import END_OF_DOCUMENT, train_tokenizer
from dla_train.errors import UsageError
from dla_train.evaluation.lm_tasks.adapter import HarnessModel
from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    generate,
    initialize,
)

WORDS = ["the quick brown fox jumps over the lazy dog. the dog sleeps.\n"] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS, 270)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    mixer = Mamba2Config(heads=2, head_dim=8, state_dim=6, memory=DynamicMemory(capacity=4, threshold=1.2))
    config = ModelConfig(vocab_size=270, hidden=16, layers=2, init_std=0.5, mixer=mixer)
    return initialize(LanguageModel(config), seed=3).double().eval()


@pytest.fixture(scope="module")
def softmax() -> LanguageModel:
    config = ModelConfig(vocab_size=270, hidden=16, layers=1, init_std=0.5, mixer=AttentionConfig(heads=2))
    return initialize(LanguageModel(config), seed=3).double().eval()


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]  # pyright: ignore


def direct(model: LanguageModel, context: list[int], continuation: list[int]) -> float:
    logits = model(torch.tensor([context + continuation]))[0][0].detach().log_softmax(-1)
    return sum(float(logits[place, token]) for place, token in enumerate(continuation, len(context) - 1))


def test_likelihoods_of_texts(model: LanguageModel, tokenizer: Tokenizer) -> None:
    harness = HarnessModel(model, tokenizer, end=0)
    texts = [("the quick", " brown fox"), ("", "the dog"), ("the quick brown fox jumps over ", "the")]
    tokens = [
        (tokenizer.encode("the quick").ids, tokenizer.encode(" brown fox").ids),
        ([0], tokenizer.encode("the dog").ids),
        (tokenizer.encode("the quick brown fox jumps over").ids, tokenizer.encode(" the").ids),
    ]
    found = harness.loglikelihood(asked("loglikelihood", *texts), disable_tqdm=True)
    for (total, _), pair in zip(found, tokens, strict=True):
        assert total == pytest.approx(direct(model, *pair), abs=1e-9)


def test_a_linear_model_reads_a_whole_text_without_windows(model: LanguageModel, tokenizer: Tokenizer) -> None:
    text = "".join(WORDS)
    harness = HarnessModel(model, tokenizer, end=0)
    [found, empty] = harness.loglikelihood_rolling(asked("loglikelihood_rolling", (text,), ("",)))
    assert found == pytest.approx(direct(model, [0], tokenizer.encode(text).ids), abs=1e-8)
    assert empty == 0


def test_a_softmax_model_sees_windows_that_cover_a_text_once(softmax: LanguageModel, tokenizer: Tokenizer) -> None:
    text = WORDS[0]
    tokens = tokenizer.encode(text).ids
    window = len(tokens) // 3 + 1
    [found] = HarnessModel(softmax, tokenizer, end=0, window=window).loglikelihood_rolling(
        asked("loglikelihood_rolling", (text,))
    )
    expected, begin = 0.0, 0
    while begin < len(tokens):
        stop = min(begin + window, len(tokens))
        before = [0, *tokens][max(0, stop - window) : begin + 1]
        expected += direct(softmax, before, tokens[begin:stop])
        begin = stop
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_softmax_model_gets_the_end_of_a_long_context(softmax: LanguageModel, tokenizer: Tokenizer) -> None:
    context, continuation = tokenizer.encode(WORDS[0].strip()).ids, tokenizer.encode(" over").ids
    window = len(continuation) + 4
    harness = HarnessModel(softmax, tokenizer, end=0, window=window)
    [(found, _)] = harness.loglikelihood(asked("loglikelihood", (WORDS[0].strip(), " over")), disable_tqdm=True)
    assert found == pytest.approx(direct(softmax, context[-5:], continuation), abs=1e-9)
    [(cut, _)] = HarnessModel(softmax, tokenizer, end=0, window=3).loglikelihood(
        asked("loglikelihood", ("fox", WORDS[0].strip())), disable_tqdm=True
    )
    tokens = tokenizer.encode("fox" + WORDS[0].strip()).ids
    assert cut == pytest.approx(direct(softmax, tokens[-4:-3], tokens[-3:]), abs=1e-9)


def test_texts_longer_than_the_window_are_refused(softmax: LanguageModel, tokenizer: Tokenizer) -> None:
    harness = HarnessModel(softmax, tokenizer, end=0, window=16)
    with pytest.raises(UsageError, match=r"up to 16 tokens.*windows of 16"):
        harness.generate_until(asked("generate_until", ("the dog", {"max_gen_toks": 16})))


def greedy(model: LanguageModel, tokenizer: Tokenizer, prompt: str, count: int) -> list[int]:
    """The likeliest tokens, up to the end of a document."""
    tokens = generate(model, torch.tensor(tokenizer.encode(prompt).ids), count, temperature=0).tolist()
    return tokens[: tokens.index(0)] if 0 in tokens else tokens


def test_texts_end_before_the_first_of_their_stops(model: LanguageModel, tokenizer: Tokenizer) -> None:
    harness = HarnessModel(model, tokenizer, end=0)
    prompts = ["the dog", "the quick", "dog"]
    whole = {prompt: tokenizer.decode(greedy(model, tokenizer, prompt, 24)) for prompt in prompts}
    stop = whole["the dog"][5:7]
    [short, other, none, as_string, long] = harness.generate_until(
        asked(
            "generate_until",
            ("the dog", {"until": [stop, "never there"], "max_gen_toks": 24}),
            ("the quick", {"until": [stop], "max_gen_toks": 24, "do_sample": False, "temperature": 1}),
            ("dog", {"until": [], "max_gen_toks": 24}),
            ("the dog", {"until": stop, "max_gen_toks": 24}),
            ("the dog", {"until": [stop], "max_gen_toks": 2}),
        )
    )
    assert short == whole["the dog"].partition(stop)[0] == as_string
    assert stop not in short
    assert other == whole["the quick"].partition(stop)[0]
    assert none == whole["dog"]
    assert long == tokenizer.decode(greedy(model, tokenizer, "the dog", 2)).partition(stop)[0]


def test_texts_are_drawn_only_where_the_task_samples(model: LanguageModel, tokenizer: Tokenizer) -> None:
    harness = HarnessModel(model, tokenizer, end=0)
    drawn = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    requests = asked("generate_until", ("the dog", drawn), ("the dog", {"max_gen_toks": 12}))
    [sampled, likeliest] = harness.generate_until(requests)
    assert likeliest == tokenizer.decode(greedy(model, tokenizer, "the dog", 12))
    assert sampled != likeliest
    assert harness.generate_until(requests) == [sampled, likeliest], "the same seed again"


def test_the_end_of_documents_is_the_tokenizers(tokenizer: Tokenizer, model: LanguageModel) -> None:
    assert tokenizer.token_to_id(END_OF_DOCUMENT) == HarnessModel(model, tokenizer, end=0).eot_token_id
