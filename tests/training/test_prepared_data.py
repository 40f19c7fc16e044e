"""Kind `prepared` through the real Trainer and command line: the same windows for any workers, ranks and stops."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from dla_data.readers import Source
from dla_data.separate_windows import SeparateBatch
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.data.prepared import PreparedDataModule, open_prepared
from dla_train.data.prepared_config import PreparedData
from dla_train.training.config import TrainingConfig

TIMES = ("tokens_per_second", "flops_per_second", "mfu", "seconds")
STEPS = 12


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


@pytest.fixture
def recipe(tokens, micro_recipe, tmp_path):
    section = f"data: {{kind: prepared, path: {tokens}, vocab_size: 300, window: 24, documents: separate}}"
    lines = [section if line.startswith("data:") else line for line in micro_recipe.read_text().splitlines()]
    (tmp_path / "prepared.yaml").write_text("\n".join(lines))
    return tmp_path / "prepared.yaml"


def _batches(tokens, documents="joined", workers=0, rank=0, world_size=1, first_step=0):
    """The micro-batches of one rank from `first_step` on."""
    config = PreparedData(path=str(tokens), vocab_size=300, window=24, workers=workers, documents=documents)
    training = TrainingConfig(steps=STEPS, global_batch=8, micro_batch=2, validation_windows=4)
    data = PreparedDataModule(open_prepared(config), config, training, seed=5)
    data.trainer = SimpleNamespace(
        global_step=first_step,
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=4 // world_size,
    )  # type: ignore[assignment]
    return list(data.train_dataloader())


@pytest.mark.parametrize("documents", ["joined", "separate"])
def test_the_batches_do_not_depend_on_the_workers(tokens, documents):
    none, *others = (_batches(tokens, documents, workers) for workers in (0, 1, 4))
    assert len(none) == STEPS * 4
    for other in others:
        for wanted, found in zip(none, other, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    if documents == "separate":
        assert all(isinstance(batch, SeparateBatch) for batch in none)
        assert max(len(batch.cu_seqlens) for batch in none) > 3


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_windows_of_a_step_do_not_depend_on_the_ranks(tokens, world_size):
    alone = torch.cat(_batches(tokens)).unflatten(0, (STEPS, -1))
    ranks = [torch.cat(_batches(tokens, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = torch.cat([rank.unflatten(0, (STEPS, -1)) for rank in ranks], dim=1)
    assert torch.equal(together, alone)


def test_a_later_start_gives_the_rest(tokens):
    whole, rest = torch.cat(_batches(tokens)), torch.cat(_batches(tokens, first_step=7))
    assert torch.equal(rest, whole[7 * 8 :])


def _rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def test_a_run_in_pieces_is_bitwise_the_run_in_one(cli, recipe, tokens, tmp_path):
    common = ["fit", "--recipe", recipe, "training.threads=1"]
    straight = cli(*common, "--run-dir", "straight")
    assert straight.code == 0, straight.err
    pieces = [*common, "--run-dir", "pieces", "--resume", "auto"]
    assert cli(*pieces, "training.max_minutes=1e-9").code == 0  # one step, then a checkpoint
    moved = shutil.copytree(tokens, tmp_path / "moved")
    assert cli(*pieces, "data.workers=2", f"data.path={moved}", "data.verify=false").code == 0
    rows = _rows(tmp_path / "straight")
    assert len([row for row in rows if row["split"] == "train"]) == 20
    train = [row for row in _rows(tmp_path / "pieces") if row["split"] == "train"]
    assert train == [row for row in rows if row["split"] == "train"]
    assert "training tokens in" in straight.err
    report = json.loads((tmp_path / "straight" / "report.json").read_text())
    assert report["sample"]


def test_joined_and_separate_are_two_experiments(cli, recipe):
    assert cli("fit", "--recipe", recipe, "--run-dir", "run", "training.max_minutes=1e-9").code == 0
    finished = cli("fit", "--recipe", recipe, "--run-dir", "run", "--resume", "auto", "data.documents=joined")
    assert finished.code == 2
    assert "data.documents separate there and joined here" in finished.err


def test_wrong_values_name_their_key(cli, recipe, tokens, tmp_path):
    save_tokenizer(train_tokenizer(["abc abc abc abd"] * 4, 259), tmp_path / "other.json")
    damaged = shutil.copytree(tokens, tmp_path / "damaged")
    content = bytearray((damaged / "shards" / "000001" / "train" / "tokens.bin").read_bytes())
    content[8] ^= 1
    (damaged / "shards" / "000001" / "train" / "tokens.bin").write_bytes(content)
    for setting, said in [
        (["data.path=nowhere"], "data.path: no prepared tokens at nowhere: no such directory"),
        (["data.path=damaged"], "data.path: damaged/shards/000001/train/tokens.bin is damaged: its SHA-256"),
        (["data.vocab_size=299"], "data.vocab_size: the tokens in"),
        (["data.vocab_size=299"], "have ids up to 299, but the vocabulary is set to 299. Set at least 300."),
        (["model.vocab_size=299"], "model.vocab_size is 299"),
        (["data.tokenizer=other.json"], "data.tokenizer: the tokens in"),
        (["data.window=9999999"], "data.window: the "),
        (["data.window=0"], "data.window is 0; it must be at least 1"),
        (["data.documents=apart"], "data.documents must be one of joined, separate"),
    ]:
        finished = cli("fit", "--recipe", recipe, "--run-dir", "run", *setting)
        assert finished.code == 2
        assert said in finished.err, finished.err
        assert not (tmp_path / "run" / "metrics.csv").exists()


def test_no_validation_documents(cli, recipe, tokens, tmp_path):
    source = tokens.parent / "texts.jsonl"
    made = cli("prepare", source, "--out", "all", "--tokenizer", tokens / "tokenizer.json", "--validation-share", "0")
    assert made.code == 0, made.err
    finished = cli("fit", "--recipe", recipe, "--run-dir", "run", "data.path=all")
    assert finished.code == 2
    assert "data.path: all has no documents for validation. Prepare it again" in finished.err
