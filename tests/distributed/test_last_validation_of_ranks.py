"""What befalls the last validation of several ranks costs no training."""

import pytest

from dla_train.runs.metrics_file import read_rows
from tests.training.exact_rows import exact_rows

FAILS = """
from dla_train.training.module import LanguageModelTraining
step = LanguageModelTraining.validation_step
def validation_step(self, *batch):
    if self.global_step == 8 and rank == 1: raise ConnectionError("the node is gone")
    return step(self, *batch)
LanguageModelTraining.validation_step = validation_step
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_only_the_validation_is_done_again(forked_ranks, fit_on, fit_arguments, tmp_path, strategy):
    settings = (f"strategy={strategy}", "checkpoint.every=3")
    codes, _ = forked_ranks(2, fit_arguments("run", *settings), before=FAILS)
    assert 0 not in codes
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*8")] == ["step-00000008"]
    said = fit_on(2, "run", *settings, "--resume=auto")
    assert "step 8/8  validation loss" in said
    assert "step 8/8  loss" not in said
    fit_on(2, "straight", *settings)
    assert exact_rows(tmp_path / "run") == exact_rows(tmp_path / "straight")
    assert [row["split"] for row in read_rows(tmp_path / "run" / "metrics.csv")].count("validation") == 2
