"""The windows of a validation are divided among the ranks, and each counts once."""

import json

import pytest

from dla_train.runs.metrics_file import read_rows
from tests.distributed.conftest import numbers, require_equal

COUNTED = """
import atexit, json, torch
from dla_train.models import LanguageModel
loss, calls = LanguageModel.loss, []
def counted(self, tokens, *arguments, **named):
    if not torch.is_grad_enabled(): calls.append(len(tokens))
    return loss(self, tokens, *arguments, **named)
LanguageModel.loss = counted
atexit.register(lambda: open(f"validated-{rank}.json", "w").write(json.dumps(calls)))
"""


@pytest.mark.parametrize("windows", [4, 5, 2])
def test_a_validation_of_three_ranks_is_that_of_one(cli, fit_on, fit_arguments, tmp_path, windows):
    settings = ("training.global_batch=6", "training.micro_batch=2", f"training.validation_windows={windows}")
    done = cli(*fit_arguments("one", *settings))
    assert done.code == 0, done.err
    said = fit_on(3, "three", "strategy=fsdp", *settings, before=COUNTED)
    assert "Warning" not in said, said
    require_equal(tmp_path / "three", tmp_path / "one")
    columns = [name for name in read_rows(tmp_path / "one/metrics.csv")[0] if name.startswith(("bound", "slots"))]
    assert len(columns) == 4
    for column in columns:
        here, there = (numbers(tmp_path / run, "validation", column) for run in ("three", "one"))
        assert here == pytest.approx(there, rel=1e-9), column
    read = [json.loads((tmp_path / f"validated-{rank}.json").read_text()) for rank in range(3)]
    # Two validations of one round each; a rank without windows of its own reads the first ones.
    assert read == {4: [[2, 2]] * 3, 5: [[2, 2], [2, 2], [1, 1]], 2: [[1, 1]] * 3}[windows]


def test_answers_of_a_validation_count_once(cli, fit_on, fit_arguments, tmp_path):
    settings = (
        "data={kind: synthetic, task: {kind: mqar, pairs: [1, 2]}, vocab_size: 16, window: 16}",
        "model.vocab_size=16", "training.global_batch=6", "training.micro_batch=2", "training.validation_windows=4",
    )  # fmt: skip
    done = cli(*fit_arguments("one", *settings))
    assert done.code == 0, done.err
    fit_on(3, "three", "strategy=ddp", *settings)
    require_equal(tmp_path / "three", tmp_path / "one")
    here, there = (numbers(tmp_path / run, "validation", "answer_accuracy") for run in ("three", "one"))
    assert here == pytest.approx(there)
