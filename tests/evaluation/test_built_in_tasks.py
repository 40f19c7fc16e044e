"""Built-in tasks against the same figures worked out another way, without any training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dla_data.synthetic import Mqar
from dla_data.synthetic.needles import NEEDLE_TASKS, longest_needle_prompt
from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.corpus import open_data
from dla_train.data.recipe_data import RecipeData
from dla_train.data.synthetic import VALIDATION_SEED
from dla_train.errors import UsageError
from dla_train.evaluation.built_in import needles, position
from dla_train.evaluation.built_in.catalog import BUILT_IN, open_task
from dla_train.evaluation.built_in.position import edges, loss_by_position
from dla_train.evaluation.built_in.task import Asked
from dla_train.evaluation.recall import recall
from dla_train.evaluation.trained import Trained
from dla_train.models import LanguageModel, generate, initialize
from dla_train.runs.folder import RunFolder
from dla_train.training.answers import answer

TASKS = {
    "mqar": [
        "report.prompt=null",
        "data={kind: synthetic, task: {kind: mqar, pairs: [1, 2]}, vocab_size: 16, window: 16}",
    ],
    "change-point": [
        "report.prompt=null",
        "data={kind: synthetic, task: {kind: change_point, segments: [1, 2], shortest: 4, themes: 4}, "
        "vocab_size: 32, window: 16}",
    ],
}


@pytest.fixture
def asked_of(micro_recipe: Path, tmp_path: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A question to a model with initial weights, as a run of the micro recipe with these settings would have it."""
    monkeypatch.setenv("DLA_TRAIN_CACHE", str(cache_directory))

    def make(*settings: str, **how: Any) -> Asked:
        loaded = load(find(str(micro_recipe)), settings)
        folder = RunFolder(tmp_path)
        if (tokenizer := open_data(loaded).tokenizer_path) is not None:
            shutil.copy(tokenizer, folder.tokenizer)
        model = initialize(LanguageModel(loaded.recipe.model), seed=0).eval()
        return Asked(trained=Trained(loaded, model, 0, folder, tmp_path), **{"say": lambda text: None, **how})

    return make


@pytest.mark.parametrize("window", [1, 2, 3, 10, 64, 65, 1000])
def test_every_position_is_in_one_bin(window: int) -> None:
    spans = edges(window)
    assert [place for low, high in spans for place in range(low, high + 1)] == list(range(1, window + 1))
    assert spans[:4] == [(1, 1), (2, 2), (3, min(4, window)), (5, min(8, window))][: len(spans)]


@pytest.mark.parametrize("mixer", [None, "{kind: attention, heads: 2}"])
def test_losses_by_position_are_those_of_the_whole_window(
    asked_of: Any, mixer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked_of(*([f"model.mixer={mixer}"] if mixer else [])).trained.model.double()
    tokens = np.random.default_rng(0).integers(0, 300, 200)
    starts = [0, 40, 90]
    windows = torch.from_numpy(np.stack([tokens[start : start + 38] for start in starts]))
    whole = model.token_losses(windows[:, :-1], windows[:, 1:])
    monkeypatch.setattr(position, "PIECE", 7)
    monkeypatch.setattr(position, "TOKENS", 14)
    read, inner = [], model.hidden_states

    def spy(tokens: torch.Tensor, **named: Any) -> Any:
        read.append(tuple(tokens.shape))
        return inner(tokens, **named)

    monkeypatch.setattr(model, "hidden_states", spy)
    told: list[int] = []
    bins = loss_by_position(model, tokens, 37, starts, told.append)
    assert read == [(2, 7)] * 5 + [(2, 2)] + [(1, 7)] * 5 + [(1, 2)], "never more at one time"
    assert told == [2, 3]
    assert [(one.first, one.last) for one in bins] == edges(37)
    for one in bins:
        part = whole[:, one.first - 1 : one.last]
        assert one.loss == pytest.approx(float(part.mean()), abs=1e-9)
        assert one.error == pytest.approx(float(part.mean(1).std()) / 3**0.5, abs=1e-9)
        assert one.tokens == part.numel()


def test_validation_text_of_windows_is_the_text_they_were_cut_from(asked_of: Any) -> None:
    data = open_data(asked_of("training.validation_windows=null").trained.loaded)
    for count in (1, 24, 25, 100):
        text = data.validation_tokens(count)
        assert len(text) == count
        assert (RecipeData.validation_tokens(data, count) == text).all()
    few = open_data(asked_of("training.validation_windows=2").trained.loaded)
    assert (few.validation_tokens(100) == text).all(), "of all the text, not of some windows"


@pytest.mark.parametrize(("limit", "expected"), [(1, [0]), (3, [0, 40, 90]), (100, list(range(0, 140, 10)))])
def test_fewer_windows_than_there_are_lie_evenly_in_the_text(
    asked_of: Any, monkeypatch: pytest.MonkeyPatch, limit: int, expected: list[int]
) -> None:
    task = open_task("perplexity-by-position", asked_of(lengths=(10,), limit=limit))
    assert isinstance(task, position.PerplexityByPosition)
    task.tokens = task.tokens[:145]  # 14 windows and their last target
    read, inner = [], position.loss_by_position
    monkeypatch.setattr(position, "loss_by_position", lambda *given: (read.append(given[2:4]), inner(*given))[1])
    task.run()
    assert read == [(10, expected)]


def test_windows_are_spread_over_the_text_and_may_be_longer_than_in_training(asked_of: Any, tmp_path: Path) -> None:
    task = open_task("perplexity-by-position", asked_of(lengths=(10, 60), limit=2))
    result = task.run()
    assert (result.values["window"], result.values["windows"], result.values["trained_window"]) == (60, 2, 24)
    assert sum(one["tokens"] for one in result.values["bins"]) == 2 * 60
    assert task.run().values == result.values
    (tmp_path / "a.txt").write_text("alpha beta gamma " * 40)
    other = open_task("perplexity-by-position", asked_of(lengths=(60,), limit=2, text=tmp_path / "a.txt")).run()
    assert other.values["bins"] != result.values["bins"]
    assert "a.txt" in other.note
    result.picture(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_streamed_text_is_read_in_one_piece(asked_of: Any, tmp_path: Path) -> None:
    words = [f"{number}: " + "alpha beta gamma delta " * (number % 5 + 1) for number in range(80)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    save_tokenizer(train_tokenizer(words, 270), tmp_path / "own.json")
    asked = asked_of(
        f"data={{kind: streaming, tokenizer: {tmp_path / 'own.json'}, vocab_size: 300, window: 24, streams: 2, "
        f"held_out: 0.5, sources: {{tale: {{path: {tmp_path / 'texts.jsonl'}}}}}}}",
        "training.validation_windows=6",
        limit=2,
        lengths=(60,),
    )
    data = open_data(asked.trained.loaded)
    tokens = data.validation_tokens(1000)
    assert len(tokens) == 6 * 24 + 1, "as much as the run reads"
    for number in range(6):
        assert (np.asarray(data.validation_windows[number]) == tokens[24 * number : 24 * number + 25]).all()
    result = open_task("perplexity-by-position", asked).run()
    assert (result.values["window"], result.values["windows"]) == (60, 2)
    with pytest.raises(UsageError, match="the text has 145 tokens, too few for one window of 200"):
        open_task("perplexity-by-position", replace(asked, lengths=(200,)))


class Answering:
    """In place of `Continuations`: says what `answer` makes of a prompt."""

    finished: ClassVar[list[int]] = []

    def __init__(self, model: object, prompts: list[list[int]], sampling: Any) -> None:
        assert sampling.temperature == 0
        self.prompts = prompts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number, prompt in enumerate(self.prompts):
            for token in self.answer(prompt):
                if number in Answering.finished:
                    break
                yield number, token
            Answering.finished.clear()

    def answer(self, prompt: list[int]) -> list[int]:
        return prompt

    def finish(self, number: int) -> None:
        Answering.finished.append(number)


def test_needles_that_are_said_are_found(asked_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that repeats what it read has all values in its answer, one that is silent has none."""
    read: list[int] = []
    monkeypatch.setattr(Answering, "answer", lambda self, prompt: read.append(len(prompt)) or prompt)
    monkeypatch.setattr(needles, "Continuations", Answering)
    monkeypatch.setattr(needles, "SUITE", {name: needles.SUITE[name] for name in ("single 3", "multi-query")})
    asked = asked_of(lengths=(1700, 2400), limit=2)
    result = open_task("needles", asked).run()
    assert [cell["score"] for cell in result.values["cells"]] == [1.0] * 4
    assert [row[0] for row in result.rows] == ["single 3", "multi-query", "**mean**"]
    assert result.rows[-1][1:] == ["100.0", "100.0"]
    assert max(read[:4]) <= 1700 < min(read[4:]) <= max(read) <= 2400, "prompts fill their length"
    monkeypatch.setattr(Answering, "answer", lambda self, prompt: [])
    silent = open_task("needles", asked).run()
    assert [cell["score"] for cell in silent.values["cells"]] == [0.0] * 4


def test_needles_are_asked_of_the_model_itself(asked_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored is the greedy continuation of the prompt that the data package makes."""
    monkeypatch.setattr(needles, "SUITE", {"single 2": "niah_single_2"})
    monkeypatch.setattr(needles, "ANSWER", 6)
    asked = asked_of(lengths=(600,), limit=1, seed=5)
    task = needles.Needles(asked)
    (answer,) = task._answers([task._prompt("single 2", 0, 600)])
    tokenizer = asked.trained.tokenizer()

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    made = longest_needle_prompt(NEEDLE_TASKS["niah_single_2"], 5, 0, 600, count, task.haystack)
    prompt = torch.tensor(tokenizer.encode(made.prompt).ids)
    wanted = max(6, 2 * count(made.answers[0]))
    ids = generate(asked.trained.model, prompt, wanted, temperature=0).tolist()
    assert answer == tokenizer.decode(ids[: ids.index(0)] if 0 in ids else ids)


def test_recall_counts_answers_alike_in_batches_of_any_size(asked_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_of(*TASKS["mqar"])
    model, data = asked.trained.model, asked.trained.recipe.data
    task = Mqar(pairs=(2,))
    made = task.examples(data.vocab_size, 16, VALIDATION_SEED, np.arange(37))
    rows = answer(model, made)
    expected = {2: float(rows.is_right.double().mean())}
    assert 0 < expected[2] < 1
    for batch in (64, 36, 5):
        monkeypatch.setattr("dla_train.evaluation.recall._BATCH", batch)
        found = recall(model, task, vocab_size=data.vocab_size, window=16, examples=37)
        assert found == pytest.approx(expected), batch


@pytest.mark.parametrize("name", TASKS)
def test_grids_are_recall_at_every_size_and_length(asked_of: Any, name: str) -> None:
    asked = asked_of(*TASKS[name], limit=30)
    result = open_task(name, asked).run()
    unit = {"mqar": "pairs", "change-point": "segments"}[name]
    cells = {(cell[unit], cell["length"]): cell["right"] for cell in result.values["cells"]}
    assert set(cells) == {(size, length) for size in (1, 2, 4) for length in (16, 32, 64)} - (
        {(4, 16)} if name == "change-point" else set()
    ), "each size and its double, where there is such an example"
    data = asked.trained.recipe.data
    for (size, length), right in cells.items():
        alone = replace(data.task, **{unit: (size,)})
        model, sizes = asked.trained.model, {"vocab_size": data.vocab_size, "window": length}
        assert recall(model, alone, **sizes, examples=30, seed=VALIDATION_SEED) == {size: right}
    assert open_task(name, asked).run().values == result.values
    assert open_task(name, replace(asked, seed=1)).run().values != result.values


def test_what_cannot_be_asked_is_refused_before_anything_is(asked_of: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("alpha")
    (tmp_path / "empty.txt").write_text(" \n")
    text, soft = asked_of(), asked_of("model.mixer={kind: attention, heads: 2}")
    mqar = asked_of(*TASKS["mqar"])
    for name, asked, message in [
        ("mqar", text, r"is for models that were trained on it.*was trained on text.*dla-train fit --recipe mqar-"),
        ("change-point", mqar, "was trained on the task mqar"),
        ("needles", mqar, "synthetic task mqar: it has no tokenizer. Ask it mqar"),
        ("mqar", replace(mqar, lengths=(3, 16)), "--lengths has 3, at which mqar has no examples: .*window is only 3"),
        ("needles", replace(text, lengths=(50,)), r"needles, single 1, at --lengths 50: a length of 50 is too short"),
        ("needles", soft, "1,024 tokens is beyond this model: its softmax.*window of 24 tokens only, and 128 more"),
        ("perplexity-by-position", replace(soft, lengths=(25,)), "25 tokens is beyond this model: its softmax"),
        ("perplexity-by-position", replace(text, lengths=(10**6,)), "too few for one window of 1,000,000"),
        ("perplexity-by-position", replace(text, text=tmp_path / "short.txt"), "too few for one window of 24"),
        ("perplexity-by-position", replace(text, text=tmp_path / "empty.txt"), "empty.txt is empty"),
    ]:
        with pytest.raises(UsageError, match=message):
            open_task(name, asked)
    text.trained.folder.tokenizer.unlink()
    with pytest.raises(UsageError, match="has no tokenizer"):
        open_task("needles", text)
    assert set(BUILT_IN) == {"perplexity-by-position", "needles", "mqar", "change-point"}


def test_a_tokenizer_that_cannot_write_the_values_is_refused(asked_of: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    asked = asked_of(lengths=(3000,))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    prompt = longest_needle_prompt(NEEDLE_TASKS["niah_single_1"], 0, 0, 900, len)
    with pytest.raises(UsageError, match=r"cannot write '[0-9]{7}'"):
        needles._require_writable(prompt, words)
    needles._require_writable(prompt, asked.trained.tokenizer())


def test_data_that_has_another_tokenizer_by_now_is_refused(asked_of: Any) -> None:
    asked = asked_of()
    path = asked.trained.folder.tokenizer
    path.write_text(path.read_text().replace("<|endoftext|>", "<|endofbook|>"))
    with pytest.raises(UsageError, match=r"data of .* has changed.*--text FILE"):
        open_task("perplexity-by-position", asked)
