"""Prepared tokens, and a recipe that reads them."""

import json

import pytest

from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards


@pytest.fixture(scope="module")
def tokens(text_corpus, tmp_path_factory):
    """Prepared tokens of 300 short documents in several shards."""
    root = tmp_path_factory.mktemp("prepared")
    lines = text_corpus.read_text().splitlines()
    texts = ["\n".join(lines[begin : begin + 2]) for begin in range(0, len(lines), 2)]
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = PrepareOptions(train_tokenizer=300, shard_tokens=1000, validation_share=0.1)
    prepare_shards([Source(path=str(root / "texts.jsonl"))], root / "tokens", options)
    return root / "tokens"


@pytest.fixture(scope="module")
def more_tokens(tokens, tmp_path_factory):
    """Other tokens by the same tokenizer, fewer than in `tokens`."""
    root = tmp_path_factory.mktemp("more")
    texts = [f"{number}: " + "kappa omega " * (number % 9 + 2) for number in range(60)]
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = PrepareOptions(tokenizer=tokens / "tokenizer.json", shard_tokens=1000, validation_share=0.2)
    prepare_shards([Source(path=str(root / "texts.jsonl"))], root / "tokens", options)
    return root / "tokens"


@pytest.fixture
def recipe(tokens, micro_recipe, tmp_path):
    section = f"data: {{kind: prepared, path: {tokens}, vocab_size: 300, window: 24, documents: separate}}"
    lines = [section if line.startswith("data:") else line for line in micro_recipe.read_text().splitlines()]
    (tmp_path / "prepared.yaml").write_text("\n".join(lines))
    return tmp_path / "prepared.yaml"
