"""`dla-train import`, and what is done with what it makes."""

import csv
import json

import pytest
import torch
import transformers

from dla_data.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture
def published(tmp_path, text_corpus):
    """A Mamba-2 model with its tokenizer, in the layout of transformers."""
    torch.manual_seed(0)
    config = transformers.Mamba2Config(
        num_heads=2, head_dim=16, hidden_size=16, state_size=8, expand=2, n_groups=1, num_hidden_layers=2,
        vocab_size=304, chunk_size=16,
    )  # fmt: skip
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path / "published")
    save_tokenizer(train_tokenizer([text_corpus.read_text()], 300), tmp_path / "published/tokenizer.json")


@pytest.mark.usefixtures("published")
def test_a_published_model_is_imported_and_trained_with_a_dynamic_memory(cli, text_corpus, tmp_path):
    done = cli("import", "--from", "published", "--to", "start")
    assert done.code == 0, done.err
    assert "published is in start: 14 K parameters, 2 layers of mamba2 with single memory." in done.out
    assert "dla-train fit --recipe start/recipe.yaml initial_weights=start data.path=TOKENS\n" in done.out
    assert "trained with dla-train" not in (tmp_path / "start/README.md").read_text()
    assert cli("generate", "--checkpoint", "start", "--prompt", "alpha", "--max-tokens", 3).code == 0
    lines = text_corpus.read_text().splitlines()
    documents = ["\n".join(lines[start::20]) for start in range(20)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    done = cli(
        "prepare", "corpus.jsonl", "--tokenizer", "start/tokenizer.json", "--out", "tokens", "--validation-share", 0.2
    )
    assert done.code == 0, done.err
    settings = [
        "training.steps=2",
        "schedule.warmup=1",
        "data.window=24",
        "training.global_batch=2",
        "training.accelerator=cpu",
    ]
    losses = {}
    for memory in ("single", "{kind: dynamic, capacity: 4, threshold: 1.0}"):
        run = f"run-{len(losses)}"
        done = cli(
            "fit", "--recipe", "start/recipe.yaml", "initial_weights=start", f"model.mixer.memory={memory}", *settings,
            "training.precision=32-true", "--run-dir", run,
        )  # fmt: skip
        assert done.code == 0, done.err
        losses[memory] = float(next(csv.DictReader((tmp_path / run / "metrics.csv").open()))["loss"])
    first, second = losses.values()
    assert first == pytest.approx(second, rel=1e-5), "a new memory begins as the single state"


@pytest.mark.usefixtures("published")
def test_what_is_missing_is_named(cli, tmp_path):
    for arguments, said in [
        ([], "needs --from DIR (the folder with the files of a published model), --to DIR (a new folder"),
        (["--from", "published"], "needs --to DIR"),
        (["--from", "nowhere", "--to", "start"], "there is no folder nowhere"),
        (["--from", "published", "--to", "published"], "published is not empty"),
        (["--from", "published", "--to", "start", "model.layers=3"], "takes no key=value"),
    ]:
        done = cli("import", *arguments)
        assert (done.code, said in done.err) == (2, True), done.err
    assert not (tmp_path / "start").exists()
