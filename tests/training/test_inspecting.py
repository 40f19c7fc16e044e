"""`logging.inspect_every`: pages while training, which change nothing in it."""

import csv
import json
import re

import pytest

from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.tokenizer import load_tokenizer
from dla_train.training.module import LanguageModelTraining


def losses(path):
    with path.open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def data_of(page):
    return json.loads(re.search(r"const data = (.*);\n", page.read_text())[1])


def test_pages_are_written_and_training_stays_the_same(cli, micro_recipe, tmp_path):
    fit = ["fit", "--recipe", micro_recipe, "training.steps=6"]
    assert cli(*fit, "--run-dir", "plain").code == 0
    done = cli(*fit, "--run-dir", "shown", "logging.inspect_every=3")
    assert done.code == 0, done.err
    assert losses(tmp_path / "shown/metrics.csv") == losses(tmp_path / "plain/metrics.csv")
    assert not (tmp_path / "plain/inspections").exists()
    pages = sorted((tmp_path / "shown/inspections").iterdir())
    assert [page.name for page in pages] == ["step-00000003.html", "step-00000006.html"]
    data = [data_of(page) for page in pages]
    assert [one["title"] for one in data] == ["shown, step 3", "shown, step 6"]
    assert "alpha" in "".join(data[0]["words"])
    assert len(data[0]["words"]) == 24
    assert data[0]["layers"][0]["score"] != data[1]["layers"][0]["score"]


@pytest.fixture
def seen(monkeypatch):
    """All micro-batches that are trained on."""
    batches = []
    step = LanguageModelTraining.training_step
    monkeypatch.setattr(
        LanguageModelTraining, "training_step", lambda self, batch, n: batches.append(batch) or step(self, batch, n)
    )
    return batches


def test_a_page_shows_the_first_window_of_its_step(cli, micro_recipe, tmp_path, seen):
    fit = ["fit", "--recipe", micro_recipe, "--run-dir", "run", "training.steps=4", "logging.inspect_every=2"]
    done = cli(*fit)
    assert done.code == 0, done.err
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer.json")
    for step in (2, 4):
        data = data_of(tmp_path / f"run/inspections/step-{step:08d}.html")
        first = seen[2 * (step - 1)]  # of two micro-batches
        assert data["words"] == [tokenizer.decode([token]) for token in first[0, :-1].tolist()]
        assert (data["ends"], data["note"]) == ([24], "A window of the training data.")


def test_documents_that_training_keeps_apart_are_apart_on_the_page(cli, micro_recipe, text_corpus, tmp_path, seen):
    lines = text_corpus.read_text().splitlines()
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": line[:30]}) + "\n" for line in lines))
    options = PrepareOptions(train_tokenizer=300, validation_share=0.1)
    prepare_shards([Source(path=str(tmp_path / "texts.jsonl"))], tmp_path / "tokens", options)
    data = f"data={{kind: prepared, path: {tmp_path}/tokens, vocab_size: 300, window: 24, documents: separate}}"
    fit = ["fit", "--recipe", micro_recipe, "--run-dir", "run", data, "training.steps=4", "logging.inspect_every=4"]
    done = cli(*fit)
    assert done.code == 0, done.err
    data = data_of(tmp_path / "run/inspections/step-00000004.html")
    batch = seen[6]
    ends = [end for end in batch.cu_seqlens[1:].tolist() if end <= 24]
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer.json")
    shown = [tokenizer.decode([token], skip_special_tokens=False) for token in batch.tokens[0, :-1].tolist()]
    assert data["words"] == shown
    assert data["ends"] == ends
    assert len(ends) > 1
    assert data["note"] == f"A window of the training data. {len(ends)} documents are kept apart in it."
    for layer in data["layers"]:
        for opens, life in zip(layer["opens"], layer["life"], strict=True):
            assert {0, *ends[:-1]} <= set(opens)
            for begin, end in zip([0, *ends], ends, strict=False):
                held = [spell for spell in life if spell[3] == end]
                assert [spell[0] for spell in held] == [begin, *(spell[1] for spell in held[:-1])]
                assert held[-1][1] == end


def test_what_cannot_be_inspected_is_refused_before_training(cli, micro_recipe, tmp_path):
    fit = ["fit", "--recipe", micro_recipe, "--run-dir", "run"]
    for settings, message in [
        (["logging.inspect_every=0"], "inspect_every is 0; it must be at least 1"),
        *(
            (["logging.inspect_every=3", setting], "has one state (memory single, or capacity 1) or softmax attention")
            for setting in (
                "model.mixer.memory=single",
                "model.mixer={kind: attention, heads: 2}",
                "model.mixer.memory={kind: dynamic, capacity: 1}",
                "model.mixer.memory={kind: fixed, capacity: 1}",
                "model.mixer.memory={kind: fenwick, capacity: 1}",
            )
        ),
    ]:
        done = cli(*fit, *settings)
        assert done.code == 2
        assert message in done.err
        assert not (tmp_path / "run").exists()
