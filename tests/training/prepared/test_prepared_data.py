"""Kind `prepared` through the real Trainer and command line: the same windows for any workers, ranks and stops."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from dla_data.errors import DataError
from dla_data.separate_windows import SeparateBatch
from dla_data.shards.prepared import PreparedTokens
from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.consumed import Consumed
from dla_train.data.fingerprints import changed_data, changed_validation
from dla_train.data.prepared import PreparedDataModule, open_prepared
from dla_train.data.prepared_config import PreparedData, PreparedSourceConfig
from dla_train.distributed.ranks import Ranks
from dla_train.runs.metrics_file import read_rows
from dla_train.training.config import TrainingConfig
from dla_train.training.start import _open_data
from tests.training.exact_rows import exact_rows

STEPS = 12
ATTENTION = "model.mixer={kind: attention, heads: 2}"


def _batches(tokens, documents="joined", workers=0, rank=0, world_size=1, first_step=0, begun=None, seed=5):
    """The micro-batches of one rank from `first_step` on; `begun` is what another run had read before."""
    config = PreparedData(path=str(tokens), vocab_size=300, window=24, workers=workers, documents=documents)
    training = TrainingConfig(steps=STEPS, global_batch=8, micro_batch=2, validation_windows=4)
    data = PreparedDataModule(open_prepared(config), config, training, seed=seed)
    data.begun = begun or data.begun
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


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_cannot_read_is_said_in_its_own_words(tokens, tmp_path, workers, monkeypatch):
    copy = shutil.copytree(tokens, tmp_path / "tokens")
    whole = open_prepared

    def open_and_damage(config):
        opened = whole(config)
        for file in copy.glob("shards/*/train/tokens.bin"):
            file.write_bytes(b"")
        return opened

    monkeypatch.setitem(globals(), "open_prepared", open_and_damage)
    with pytest.raises(
        DataError, match=r"^\S+/tokens\.bin has 0 bytes, but the manifest says \S+ Delete the .* again\.$"
    ):
        _batches(copy, workers=workers)


@pytest.mark.parametrize(("local_rank", "read"), [(0, True), (1, False)])
def test_one_rank_of_a_node_reads_every_byte(recipe, local_rank, read, monkeypatch):
    asked = []
    whole = PreparedTokens.open
    monkeypatch.setattr(PreparedTokens, "open", lambda path, verify: asked.append(verify) or whole(path))
    _open_data(load(find(str(recipe))), Ranks(local_rank=local_rank))
    assert asked == [read]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_windows_of_a_step_do_not_depend_on_the_ranks(tokens, world_size):
    alone = torch.cat(_batches(tokens)).unflatten(0, (STEPS, -1))
    ranks = [torch.cat(_batches(tokens, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = torch.cat([rank.unflatten(0, (STEPS, -1)) for rank in ranks], dim=1)
    assert torch.equal(together, alone)


def test_another_seed_is_another_order(tokens):
    one, other = (torch.cat(_batches(tokens, seed=seed)) for seed in (5, 6))
    assert not torch.equal(other, one)


def test_a_later_start_gives_the_rest(tokens):
    whole, rest = torch.cat(_batches(tokens)), torch.cat(_batches(tokens, first_step=7))
    assert torch.equal(rest, whole[7 * 8 :])


def test_a_branch_of_a_run_with_another_batch_reads_on_where_that_one_stopped(tokens):
    whole = torch.cat(_batches(tokens))
    rest = torch.cat(_batches(tokens, first_step=7, begun=Consumed(step=6, windows=6 * 3, tokens=6 * 3 * 24)))
    assert torch.equal(rest[: 3 * 8], whole[6 * 3 + 8 :][: 3 * 8]), "six steps of 3 windows, one of 8"


@pytest.mark.parametrize("count", [1, 4, 5, 1000])
def test_validation_windows_are_spread_evenly_over_the_text_of_each_source(tokens, more_tokens, count):
    sources = {"a": PreparedSourceConfig(path=str(tokens)), "b": PreparedSourceConfig(path=str(more_tokens))}
    config = PreparedData(sources=sources, vocab_size=300, window=24, documents="separate")
    training = TrainingConfig(steps=1, global_batch=1, micro_batch=1, validation_windows=2 * count)
    data = PreparedDataModule(open_prepared(config), config, training, seed=5)
    expected = []
    for source in data.sources:
        there = len(source.plain_validation)
        chosen = min(count, there)
        expected += [source.plain_validation[number * there // chosen] for number in range(chosen)]
    assert torch.equal(torch.stack([*data.validation_windows]), torch.stack(expected))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)  # type: ignore[assignment]
    read = torch.cat([batch.tokens for batch in data.val_dataloader()])
    assert torch.equal(read, torch.stack(expected)), "and the run reads those that it shows"


def test_a_run_in_pieces_is_bitwise_the_run_in_one(cli, recipe, tokens, tmp_path):
    common = ["fit", "--recipe", recipe, "training.threads=1"]
    straight = cli(*common, "--run-dir", "straight")
    assert straight.code == 0, straight.err
    pieces = [*common, "--run-dir", "pieces", "--resume", "auto"]
    assert cli(*pieces, "training.max_minutes=1e-9").code == 0  # one step, then a checkpoint
    moved = shutil.copytree(tokens, tmp_path / "moved")
    assert cli(*pieces, "data.workers=2", f"data.path={moved}", "data.verify=false").code == 0
    rows = exact_rows(tmp_path / "straight")
    assert len([row for row in rows if row["split"] == "train"]) == 20
    train = [row for row in exact_rows(tmp_path / "pieces") if row["split"] == "train"]
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
    assert "data.path: all has no documents for validation. Prepare the text again" in finished.err
    named = re.search(r"without validation: (training\.\S+) (training\.\S+)\.\n", finished.err)
    finished = cli("fit", "--recipe", recipe, "--run-dir", "run", "data.path=all", "training.steps=4", *named.groups())
    assert finished.code == 0, finished.err
    assert [row["split"] for row in read_rows(tmp_path / "run/metrics.csv")] == ["train"] * 4
    asked = cli("eval", "--checkpoint", "run", "--tasks", "perplexity-by-position")
    assert asked.code == 2
    assert "validation text of run cannot be read: there are no tokens in the validation part of all. --" in asked.err


def test_an_evaluation_compares_the_checksums_of_the_text_that_it_reads(cli, recipe, tokens, tmp_path):
    """Those of the training text took an hour for a large corpus, before every evaluation."""
    copy = shutil.copytree(tokens, tmp_path / "copy")
    fit = ["fit", "--recipe", recipe, "--run-dir", "run", "data.path=copy", "training.max_minutes=1e-9"]
    assert cli(*fit).code == 0
    ask = ["eval", "--checkpoint", "run", "--tasks", "perplexity-by-position", "--limit", "2"]
    whole = cli(*ask)
    assert (whole.code, "warning" in whole.err) == (0, False), whole.err
    [shard, *_] = sorted(copy.glob("shards/*/validation"))
    for path, code in [(copy / "shards/000001/train/tokens.bin", 0), (shard / "tokens.bin", 2)]:
        content = bytearray(path.read_bytes())
        content[8] ^= 1
        path.write_bytes(content)
        asked = cli(*ask)
        assert asked.code == code, asked.err
        assert asked.out == (whole.out if code == 0 else "")
    assert f"cannot be read: {path.relative_to(tmp_path)} is damaged: its SHA-256" in asked.err


def test_an_evaluation_says_that_the_text_is_no_longer_that_of_the_run(cli, recipe, tokens, tmp_path):
    """Documents that are held out now may have been trained on then."""
    again = ["prepare", tokens.parent / "texts.jsonl", "--tokenizer", tokens / "tokenizer.json", "--out", "mine"]
    assert cli(*again, "--validation-share", "0.1").code == 0
    fit = ["fit", "--recipe", recipe, "--run-dir", "run", "data.path=mine", "training.max_minutes=1e-9"]
    assert cli(*fit).code == 0
    shutil.rmtree(tmp_path / "mine")
    assert cli(*again, "--validation-share", "0.5").code == 0
    asked = cli("eval", "--checkpoint", "run", "--tasks", "perplexity-by-position", "--limit", "2")
    assert asked.code == 0
    assert "warning: run was trained on another training text, so the validation text may be another" in asked.err


@pytest.mark.parametrize("several", [False, True])
def test_what_is_validated_is_told_from_what_is_trained_on(tokens, more_tokens, several):
    """A run that goes on may have other text only where it is validated."""
    folders = {"a": tokens, "b": more_tokens} if several else {"": tokens}
    sources = {name: PreparedSourceConfig(path=str(path), weight=1) for name, path in folders.items()}
    paths = {"sources": sources} if several else {"path": str(tokens)}
    config = PreparedData(vocab_size=300, window=24, **paths)
    training = TrainingConfig(steps=STEPS, global_batch=8, micro_batch=2)
    there = {**PreparedDataModule(open_prepared(config), config, training, seed=5).fingerprints}
    texts = {f"text of data.sources.{name}" if name else "text": name for name in folders}
    for text, name in texts.items():
        folder = PreparedTokens.open(folders[name])
        trained, validated = text if name else f"training {text}", f"validation {text}"
        assert there[trained] == folder.fingerprint("train")
        assert there[validated] == folder.fingerprint("validation")
        assert changed_validation(there, there | {validated: "another"}) == [validated]
        assert not changed_data(there, there | {validated: "another"})
        assert list(changed_data(there, there | {trained: "another"})) == [trained]
    assert len(there) == 1 + 2 * len(folders)
