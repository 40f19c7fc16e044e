"""What two ranks must decide alike though each sees windows of its own: a step to skip, and calibrated thresholds."""

import re

import pytest

from dla_train.runs.metrics_file import read_rows

DIVERGES_ON_RANK_0 = """
import sys
import torch
from dla_train.cli.main import main
from dla_train.models import LanguageModel
loss, calls = LanguageModel.loss, []
def diverged(self, *arguments, **named):
    if torch.is_grad_enabled(): calls.append(self)
    # Two windows a step on this rank: the second one of step 3 alone; the other rank, a process of its own, is sound.
    spoiled = float("nan") if torch.is_grad_enabled() and len(calls) == 6 else 1.0
    return loss(self, *arguments, **named) * spoiled
LanguageModel.loss = diverged
sys.exit(main(sys.argv[1:]))
"""


def test_a_step_that_one_rank_spoils_is_skipped_by_both_and_both_calibrate_alike(
    start_process, fit_arguments, tmp_path
):
    settings = (
        "strategy={kind: ddp, devices: 2}", "model.mixer.memory.calibrate_rate=0.3", "training.validate_every=null",
        "checkpoint.every=100",
    )  # fmt: skip
    process = start_process("-c", DIVERGES_ON_RANK_0, *fit_arguments("run", *settings))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err

    rows = [row for row in read_rows(tmp_path / "run" / "metrics.csv") if row["split"] == "train"]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert all(row["loss"] == row["loss"] for row in rows if row["step"] != 3), "training goes on"
    assert rows[0]["boundary_rate.0"] == pytest.approx(0.3, abs=0.15)

    logs = [(tmp_path / "run" / "logs" / name).read_text() for name in ("run.log", "rank-1.log")]
    for pattern in (
        r"step 3 is skipped: its gradient is nan; its windows have the global indices 8 to 11 \(1 in a row",
        r"Thresholds for a boundary rate of 0.3, layer by layer: (.*)",
    ):
        first, second = (re.findall(pattern, log) for log in logs)
        assert len(first) == 1
        assert first == second
