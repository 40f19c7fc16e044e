"""What two ranks must decide alike though each sees windows of its own: a step to skip, what an answer counts, and
calibrated and steered thresholds."""

import re

import pytest

from dla_train.runs.metrics_file import read_rows

DIVERGES_ON_RANK_0 = """
import torch
from dla_train.models import LanguageModel
loss, calls = LanguageModel.loss, []
def diverged(self, *arguments, **named):
    if torch.is_grad_enabled(): calls.append(self)
    # Two windows a step on each rank: on this one, the second of step 3.
    spoiled = float("nan") if rank == 0 and torch.is_grad_enabled() and len(calls) == 6 else 1.0
    return loss(self, *arguments, **named) * spoiled
LanguageModel.loss = diverged
"""


SPIKES_ON_RANK_0 = """
import torch
from dla_train.models import LanguageModel
from dla_train.training import spikes
spikes.FIRST_STEPS = 2
loss, calls = LanguageModel.loss, []
def spoiled(self, *arguments, **named):
    if torch.is_grad_enabled(): calls.append(self)
    # Two windows a step on each rank: step 4 is not finite, and step 6 a spike.
    factor = {7: float("inf"), 11: 1e6}.get(len(calls), 1.0) if rank == 0 and torch.is_grad_enabled() else 1.0
    return loss(self, *arguments, **named) * factor
LanguageModel.loss = spoiled
"""
STRATEGIES = {
    "fsdp": "{kind: fsdp}",
    **{f"zero-{stage}": f"{{kind: deepspeed, stage: {stage}}}" for stage in (1, 2, 3)},
    "offloaded": "{kind: deepspeed, stage: 2, offload_optimizer: true}",
}


@pytest.mark.slow
def test_every_strategy_skips_the_same_steps_and_goes_on_alike(fit_on, tmp_path):
    found = {}
    for name, strategy in {"ddp": "ddp", **STRATEGIES}.items():
        settings = (f"strategy={strategy}", "training.skip_above=10", "training.validate_every=null")
        assert "OVERFLOW" not in fit_on(2, name, *settings, before=SPIKES_ON_RANK_0)
        found[name] = [row for row in read_rows(tmp_path / name / "metrics.csv") if row["split"] == "train"]
    for name, rows in found.items():
        assert [row["skipped"] for row in rows] == [0, 0, 0, 1, 1, 2, 2, 2], name
        for column in ("loss", "grad_norm"):
            here, there = ([row[column] for row in run if row["step"] not in (4, 6)] for run in (rows, found["ddp"]))
            assert here == pytest.approx(there, rel=1e-5), (name, column)


def test_an_answer_counts_alike_on_every_rank(fit_on, tmp_path):
    settings = (
        "data={kind: synthetic, task: {kind: mqar, pairs: [1, 2, 4]}, vocab_size: 16, window: 16}",
        "model.vocab_size=16", "training.global_batch=8", "training.micro_batch=2",
    )  # fmt: skip
    fit_on(1, "one", *settings)
    fit_on(2, "two", "strategy=ddp", *settings)
    one, two = (read_rows(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for column in ("loss", "grad_norm"):
        expected = [row[column] for row in one if row["split"] == "train"]
        assert [row[column] for row in two if row["split"] == "train"] == pytest.approx(expected, rel=1e-5)


def test_that_training_diverged_is_told_once(forked_ranks, fit_arguments, tmp_path):
    arguments = fit_arguments("run", "strategy=ddp", "training.max_nonfinite=0", "training.validate_every=null")
    codes, said = forked_ranks(2, arguments, DIVERGES_ON_RANK_0)
    assert codes == [1, 1]
    assert "dla-train: error: the gradient of step 3 is nan, 1 in a row: training diverged" in said
    assert "error" not in (tmp_path / "said-by-1").read_text()


def test_a_rank_with_another_recipe_is_refused_before_anything_is_written(forked_ranks, fit_arguments, tmp_path):
    other = "if rank: sys.argv.append('optimizer.lr=0.5')"
    codes, said = forked_ranks(2, fit_arguments("run", "strategy=ddp", "optimizer.lr=0.25"), other)
    assert codes == [1, 1]
    assert "dla-train: error: the recipe of rank 1 on " in said
    assert ": optimizer.lr is 0.5 instead of 0.25. Make the same files visible" in said
    assert not (tmp_path / "run").exists()


OTHER_TORCH_ON_RANK_1 = """
from importlib import metadata
found = metadata.version
metadata.version = lambda name: "1.0" if rank and name == "torch" else found(name)
"""


def test_a_rank_with_another_torch_is_refused_before_anything_is_written(forked_ranks, fit_arguments, tmp_path):
    codes, said = forked_ranks(2, fit_arguments("run", "strategy=ddp"), OTHER_TORCH_ON_RANK_1)
    assert codes == [1, 1]
    assert "dla-train: error: the software of rank 1 on " in said
    assert re.search(r": torch is 1\.0 instead of \S+\. Install the same versions on all nodes\.", said)
    assert not (tmp_path / "run").exists()


def test_a_step_that_one_rank_spoils_is_skipped_by_both_and_both_calibrate_alike(fit_on, tmp_path):
    settings = (
        "strategy=ddp", "model.mixer.memory.calibrate_rate=0.3", "model.mixer.memory.steer=0.1",
        "training.validate_every=null", "checkpoint.every=100",
    )  # fmt: skip
    fit_on(2, "run", *settings, before=DIVERGES_ON_RANK_0)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.csv") if row["split"] == "train"]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert all(row["loss"] == row["loss"] for row in rows if row["step"] != 3), "training goes on"
    assert rows[0]["boundary_rate.0"] == pytest.approx(0.3, abs=0.15)

    logs = [(tmp_path / "run" / "logs" / name).read_text() for name in ("run.log", "rank-1.log")]
    for pattern in (
        r"step 3 is skipped: its gradient is nan; its windows have the global indices 8 to 11 \(1 in a row",
        r"Thresholds for a boundary rate of 0.3, layer by layer: (.*)",
        r"Thresholds after the last step, layer by layer: (.*)",  # moved before DDP hands out rank 0's again
    ):
        first, second = (re.findall(pattern, log) for log in logs)
        assert len(first) == 1
        assert first == second
