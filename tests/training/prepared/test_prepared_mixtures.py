"""Several prepared folders, mixed by weight."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from dla_train.data.consumed import Consumed
from dla_train.data.prepared import PreparedDataModule, open_prepared
from dla_train.data.prepared_config import PreparedData, PreparedSourceConfig
from dla_train.training.config import TrainingConfig
from tests.training.exact_rows import exact_rows


def _windows(dataset):
    return {tuple(dataset[number].tolist()) for number in range(len(dataset))}


def test_several_folders_are_mixed_by_weight_in_batches_and_validation(tokens, more_tokens):
    sources = {
        "b": PreparedSourceConfig(path=str(more_tokens), weight=1),
        "a": PreparedSourceConfig(path=str(tokens), weight=3),
    }
    config = PreparedData(sources=sources, vocab_size=300, window=24)
    training = TrainingConfig(steps=40, global_batch=8, micro_batch=2, validation_windows=8)
    data = PreparedDataModule(open_prepared(config), config, training, seed=5)
    alone = SimpleNamespace(global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=4)
    data.trainer = alone  # type: ignore[assignment]
    steps = torch.cat(list(data.train_dataloader())).unflatten(0, (40, 8)).tolist()
    one, other = (_windows(source.train) for source in data.sources)
    assert not one & other
    for step in steps:
        assert sum(tuple(window) in one for window in step) == 6
        assert sum(tuple(window) in other for window in step) == 2
    assert len({tuple(window) for step in steps for window in step} & other) == len(other), "several epochs of all"
    assert data.consumed(40).by_source == {"a": 40 * 6 * 24, "b": 40 * 2 * 24}
    validation = _windows(data.validation_windows)
    assert sum(window in _windows(data.sources[0].plain_validation) for window in validation) == 6
    assert sum(window in _windows(data.sources[1].plain_validation) for window in validation) == 2
    texts = [folder.validation for folder in data.tokens.values()]
    assert data.validation_tokens(8).tolist() == [*texts[0].read(0, 6), *texts[1].read(0, 2)]
    assert data.extent.endswith("shards of a, b")

    data.begun = Consumed(step=40, windows=100, tokens=7000, by_source={"a": 5000, "b": 2000})  # of shorter windows
    assert data.consumed(42) == Consumed(
        step=42, windows=116, tokens=7000 + 16 * 24, by_source={"a": 5000 + 12 * 24, "b": 2000 + 4 * 24}
    )


def sum_of_training_tokens(folder):
    return sum(path.stat().st_size // 2 for path in folder.glob("shards/*/train/tokens.bin"))


def _mixed(one, other, weight=""):
    sources = f"{{a: {{path: {one}{weight}}}, b: {{path: {other}}}}}"
    return f"data={{kind: prepared, vocab_size: 300, window: 24, sources: {sources}}}"


def test_a_mixture_trains_counts_its_tokens_and_goes_on_after_a_move(cli, recipe, tokens, more_tokens, tmp_path):
    mixed = _mixed(tokens, more_tokens, ", weight: 3")
    common = ["fit", "--recipe", recipe, "--run-dir", "run", mixed, "training.threads=1"]
    assert cli(*common, "training.max_minutes=1e-9").code == 0
    moved = shutil.copytree(more_tokens, tmp_path / "moved")
    goes_on = cli(*common, f"data.sources.b.path={moved}", "--resume", "auto")
    assert goes_on.code == 0, goes_on.err
    rows = [row for row in exact_rows(tmp_path / "run") if row["split"] == "train"]
    assert float(rows[-1]["tokens.a"]) == 3 * float(rows[-1]["tokens.b"]) == 20 * 96 * 3 / 4
    sizes = {name: (sum_of_training_tokens(folder) - 1) // 24 for name, folder in (("a", tokens), ("b", more_tokens))}
    said = re.search(r"20 steps of 96 tokens \(epochs: a (\S+), b (\S+)\); ", goes_on.err)
    assert said, goes_on.err
    assert float(said[1]) == pytest.approx(60 / sizes["a"], abs=0.005)
    assert float(said[2]) == pytest.approx(20 / sizes["b"], abs=0.005)
    other = cli(*common, "data.sources.b.weight=2", "--resume", "auto", "training.steps=21")
    assert other.code == 2
    assert "data.sources.b.weight 1.0 there and 2.0 here" in other.err


@pytest.mark.parametrize("kind", ["prepared", "streaming"])
def test_a_source_without_any_validation_window_is_told(cli, recipe, tokens, more_tokens, kind):
    data = _mixed(tokens, more_tokens, ", weight: 30")
    if kind == "streaming":
        one, other = (folder.parent / "texts.jsonl" for folder in (tokens, more_tokens))
        data = (
            "data={kind: streaming, vocab_size: 300, window: 24, streams: 2, held_out: 0.2, "
            f"tokenizer: {tokens / 'tokenizer.json'}, "
            f"sources: {{a: {{path: {one}, weight: 30}}, b: {{path: {other}}}}}}}"
        )
    fit = ["fit", "--recipe", recipe, data, "training.max_minutes=1e-9"]
    said = "training.validation_windows is 9, of which data.sources.b gets none by its weight: the validation loss says"
    assert said in cli(*fit, "training.validation_windows=9", "--run-dir", "nine").err
    assert "by its weight" not in cli(*fit, "training.validation_windows=31", "--run-dir", "more").err


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_mixture_that_trains_on_what_it_validates_is_told(cli, recipe, tokens, tmp_path, is_moved):
    text = tokens.parent / "texts.jsonl"
    if is_moved:
        text = shutil.copy2(text, tmp_path / text.name)
    shares = {"same": 0.1, "small": 0.05}
    for name, share in shares.items():
        given = ("--tokenizer", tokens / "tokenizer.json", "--validation-share", share)
        assert cli("prepare", text, "--out", name, *given).code == 0
    fit = ["fit", "--recipe", recipe, "training.max_minutes=1e-9"]
    done = cli(*fit, _mixed("small", tokens), "--run-dir", "told")
    assert done.code == 0, done.err
    assert (
        f"data.sources.a trains on documents that data.sources.b validates: both were prepared from {text}, with "
        "--validation-share 0.05 and 0.1." in done.err
    )
    without = ("training.validation_windows=0", "training.validate_every=null")
    assert "validates" not in cli(*fit, _mixed("small", tokens), *without, "--run-dir", "blind").err
    assert "validates" not in cli(*fit, _mixed("same", tokens), "--run-dir", "same-share").err


def test_mixtures_of_other_files_are_not_told(cli, recipe, tokens, more_tokens):
    done = cli("fit", "--recipe", recipe, "training.max_minutes=1e-9", _mixed(tokens, more_tokens))
    assert done.code == 0, done.err
    assert "validates" not in done.err


def test_what_cannot_be_mixed_names_its_key(cli, recipe, tokens, more_tokens, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "abc abd " * 40}) + "\n")
    made = cli("prepare", "texts.jsonl", "--out", "other", "--train-tokenizer", "259")
    assert made.code == 0, made.err
    base = _mixed(tokens, more_tokens)
    for settings, said in [
        ([base, f"data.path={tokens}"], "data.path is one folder and sources are several; both are given"),
        (["data={kind: prepared, vocab_size: 300, window: 24}"], "neither is given, and there must be one of the two"),
        ([base, "data.sources={}"], "data.sources must be a section with at least one named section"),
        ([base, "data.sources.a.weight=0"], "data.sources.a.weight is 0.0; it must be above 0"),
        ([base, "data.sources.c d.path=x"], "sources has the name 'c d'; use letters"),
        ([base, "data.sources.b.path=nowhere"], "data.sources.b: no prepared tokens at nowhere"),
        ([base, "data.sources.b.path=other"], "data.sources.b: the tokens in other were made by tokenizer"),
        ([base, "data.sources.b.weight=1e-6"], "so its source would not be read"),
        ([base, "data.curriculum={windows: [7], steps: [1]}"], "curriculum.windows has 7, of which window 24 is"),
    ]:
        finished = cli("fit", "--recipe", recipe, "--run-dir", "run", *settings)
        assert finished.code == 2
        assert said in finished.err.replace("\n", " "), finished.err
        assert not (tmp_path / "run" / "metrics.csv").exists()
