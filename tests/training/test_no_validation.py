"""`training.validation_windows=0`: a run without any validation, from its first step to its report."""

import json

import pytest

from dla_train.runs.metrics_file import read_rows

NONE = ("training.validation_windows=0", "training.validate_every=null")
SYNTHETIC = (
    "data={kind: synthetic, vocab_size: 16, window: 12, task: {kind: mqar, pairs: [2]}}",
    "report.prompt=null",
)


@pytest.fixture
def fit(cli, micro_recipe):
    def run(name, *settings):
        done = cli("fit", "--recipe", micro_recipe, "--run-dir", name, "schedule.warmup=1", *settings)
        assert done.code == 0, done.err
        return done

    return run


def rows(folder, split="train"):
    names = ("step", "loss", "grad_norm")
    found = [row for row in read_rows(folder / "metrics.csv") if row["split"] == split]
    return [{name: row.get(name) for name in names} for row in found]


def test_training_is_the_same_and_the_report_says_what_there_is(fit, tmp_path):
    fit("with", "training.steps=6")
    done = fit("without", "training.steps=6", *NONE)
    assert rows(tmp_path / "without") == rows(tmp_path / "with")
    assert not rows(tmp_path / "without", "validation")
    assert "6 steps of 96 tokens (0.10 epochs); windows of 24, no validation" in done.err
    assert "validation loss" not in done.err
    assert "warning" not in done.err, "of a loader without windows"
    mean = sum(row["loss"] for row in rows(tmp_path / "without")) / 6
    assert f"| training loss | {mean:.4f} nats per token (mean of the last 6 steps; no validation) |" in done.out
    assert "| layer | boundary rate | slots in use |" in done.out, "of the last training step"
    assert "bigram" not in done.out
    assert "▸" in done.out, "the sample"
    report = json.loads((tmp_path / "without/report.json").read_text())
    assert report["training_loss"] == pytest.approx(mean)
    assert report["validation_loss"] is report["validation_perplexity"] is report["bigram_loss"] is None
    assert (tmp_path / "without/loss.png").stat().st_size > 0


def test_a_run_that_goes_on_without_or_with_it_again_reports_no_old_one(fit, tmp_path):
    fit("run", "training.steps=2")
    done = fit("run", "training.steps=4", "--resume", "auto", *NONE)
    assert [row["step"] for row in rows(tmp_path / "run", "validation")] == [2]
    assert "| training loss" in done.out
    assert "validation loss" not in done.out
    done = fit("run", "training.steps=5", "--resume", "auto")
    assert [row["step"] for row in rows(tmp_path / "run", "validation")] == [2, 5]
    assert "| validation loss" in done.out


def test_answer_tasks_need_none_either(fit, tmp_path):
    done = fit("run", "training.steps=3", *NONE, *SYNTHETIC)
    assert not rows(tmp_path / "run", "validation")
    assert "nats per answer (mean of the last 3 steps; no validation) |" in done.out
    assert "answers right" not in done.out


def test_text_too_short_for_a_validation_window_can_be_trained_on(cli, micro_recipe, tmp_path):
    window = ("data.window=1000", "training.steps=2", "training.global_batch=1", "training.micro_batch=1")
    fit = ("fit", "--recipe", micro_recipe, "schedule.warmup=1", "report.prompt=null", *window)
    refused = cli(*fit, "--run-dir", "refused")
    assert refused.code == 2
    assert "too few for one window of 1,000" in refused.err
    assert cli(*fit, "--run-dir", "run", *NONE).code == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.validation_windows=0"], "validate_every is 5, but validation_windows is 0, which never validates"),
        (
            ["training.validation_windows=-1"],
            "validation_windows is -1; it must be at least 0 (no validation), or null",
        ),
        (
            ["training.validate_every=0"],
            "it must be at least 1, or null; training.validation_windows=0 never validates",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(cli, micro_recipe, settings, message):
    done = cli("show", micro_recipe, *settings)
    assert done.code == 2
    assert message in done.err
