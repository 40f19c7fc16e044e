"""Documents kept apart, from the files on disk to the losses: what an early one says, no later one knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_train.data.prepared import PreparedDataModule, open_prepared
from dla_train.data.prepared_config import PreparedData
from dla_train.training.batch import model_inputs
from dla_train.training.config import TrainingConfig

TEXTS = [f"document {number} " + "one two three "[: 3 + number % 9] for number in range(60)]
CHANGED = 9  # is for training, before and after


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same texts prepared twice, `after` with other letters in one early document; a byte is a token."""
    root = tmp_path_factory.mktemp("documents")
    made = {}
    for name in ("before", "after"):
        texts = list(TEXTS)
        if name == "after":
            texts[CHANGED] = texts[CHANGED].swapcase()
        (root / name).mkdir()
        (root / name / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        options = PrepareOptions(train_tokenizer=257, shard_tokens=400, validation_share=0.2)
        prepare_shards([Source(path=str(root / name / "texts.jsonl"))], root / name / "out", options)
        made[name] = root / name / "out"
    return made


def first_batch(folder: Path, documents: str) -> Any:
    """Windows 0 to 3 of 160 tokens in one batch, as training would get them, and the place of each document in it."""
    config = PreparedData(path=str(folder), vocab_size=257, window=160, documents=documents)
    training = TrainingConfig(steps=1, global_batch=4, micro_batch=4, validation_windows=1)
    data = PreparedDataModule(open_prepared(config), config, training, seed=0)
    windows = [data.train_windows[index] for index in range(4)]  # type: ignore[index]
    collate = data._collate or torch.stack
    return model_inputs(collate(windows))


def losses(model: Any, folder: Path, documents: str) -> Tensor:
    inputs, targets, cu_seqlens = first_batch(folder, documents)
    return model.token_losses(inputs, targets, cu_seqlens).flatten()


def test_no_document_knows_an_earlier_one(folders: dict[str, Path], make_model: Any, any_case: tuple[str, str]) -> None:
    model = make_model(*any_case, vocab_size=257)
    before, after = (first_batch(folders[name], "separate") for name in ("before", "after"))
    assert torch.equal(before.cu_seqlens, after.cu_seqlens)
    touched = (before.targets != after.targets).flatten().nonzero().flatten()
    assert 5 < len(touched) < 40
    # Its inputs begin with the end of the document before it, so its bounds are the ones around its first target.
    first, last = int(touched[0]), int(touched[-1])
    end = int(before.cu_seqlens[torch.searchsorted(before.cu_seqlens.long(), last, right=True)])
    assert end < 320  # there are later documents, in the same window and in others

    difference = (losses(model, folders["before"], "separate") - losses(model, folders["after"], "separate")).abs()
    assert difference[first:end].max() > 1e-3
    # float64 tells rounding from a leak by ten orders of magnitude.
    assert difference[end:].max() < 1e-12
    assert difference[:first].max() < 1e-12

    joined = (losses(model, folders["before"], "joined") - losses(model, folders["after"], "joined")).abs()
    assert joined[end : end + 3].max() > 1e-6  # with documents joined, the next one does know
