"""Shorter windows in the first steps of a run."""

import re

import pytest
import torch

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data import recipe_data
from dla_train.estimate.flops import training_flops
from dla_train.runs.metrics_file import read_rows
from dla_train.training.batch import model_inputs
from dla_train.training.module import LanguageModelTraining

ATTENTION = "model.mixer={kind: attention, heads: 2}"


def test_a_curriculum_that_takes_the_whole_run_is_told(cli, recipe):
    fit = ["fit", "--recipe", recipe, "training.max_minutes=1e-9", "training.steps=6"]
    all_steps, fewer = (f"data.curriculum={{windows: [6, 12], steps: [2, {last}]}}" for last in (4, 3))
    said = (
        "data.curriculum takes all of training.steps, 6: no window gets its full length of 24, the last ones have 12."
    )
    assert said in cli(*fit, all_steps, "--run-dir", "all").err
    assert "data.curriculum" not in cli(*fit, fewer, "--run-dir", "fewer").err


@pytest.mark.parametrize("documents", ["joined", "separate"])
def test_a_curriculum_cuts_windows_and_keeps_a_step_s_tokens(cli, recipe, monkeypatch, tmp_path, documents):
    seen = {}
    original, validation = LanguageModelTraining.training_step, LanguageModelTraining.validation_step

    def step(self, batch, batch_idx):
        seen.setdefault(self.global_step, []).append(batch)
        return original(self, batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        seen.setdefault("validation", []).append(batch)
        return validation(self, batch, batch_idx)

    sent, make = [], recipe_data.cu_seqlens_of
    monkeypatch.setattr(recipe_data, "cu_seqlens_of", lambda ends, device: sent.append(ends) or make(ends, device))
    monkeypatch.setattr(LanguageModelTraining, "training_step", step)
    monkeypatch.setattr(LanguageModelTraining, "validation_step", validation_step)
    common = [
        "fit",
        "--recipe",
        recipe,
        f"data.documents={documents}",
        "training.steps=6",
        "training.validate_every=2",
        ATTENTION,
    ]
    assert cli(*common, "--run-dir", "whole").code == 0
    whole, seen = seen, {}
    done = cli(*common, "--run-dir", "cut", "data.curriculum={windows: [6, 12], steps: [2, 2]}")
    assert done.code == 0, done.err
    assert re.findall(r"windows of (\d+) tokens from step (\d) on", done.err) == [("6", "1"), ("12", "3"), ("24", "5")]
    torch.testing.assert_close(seen.pop("validation"), whole.pop("validation"), rtol=0, atol=0)  # whole in all phases
    model = load(find(str(tmp_path / "cut" / "recipe.yaml"))).recipe.model
    rows = [row for row in read_rows(tmp_path / "cut" / "metrics.csv") if row["split"] == "train"]
    for number, length in enumerate([6, 6, 12, 12, 24, 24]):
        flops = rows[number]["flops_per_second"] / rows[number]["tokens_per_second"]
        assert flops == pytest.approx(training_flops(model, length)), "attention costs less in short windows"
        for plain, cut in zip(whole[number], seen[number], strict=True):
            before, after = model_inputs(plain), model_inputs(cut)
            assert torch.equal(after.inputs.flatten(), before.inputs.flatten())
            assert torch.equal(after.targets.flatten(), before.targets.flatten())
            if documents == "separate":
                starts = {*before.cu_seqlens.tolist(), *range(0, 48, length)}
                assert after.cu_seqlens.tolist() == sorted(starts)
                assert after.cu_seqlens.dtype == torch.int32
            else:
                assert cut.shape == (48 // length, length + 1)
    assert len(sent) >= (2 * 6 if documents == "separate" else 0), "the host knows where documents begin"
