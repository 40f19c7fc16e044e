"""A signal in the middle of a validation ends it at once; the resumed run makes up for it."""

import signal

import pytest

from dla_train.training.module import LanguageModelTraining
from tests.training.exact_rows import exact_rows


@pytest.fixture
def validated(monkeypatch):
    """Steps at which a batch of validation was computed; a signal comes with the first one of `validated.signal_at`."""

    class Validated(list):
        signal_at = None

    steps = Validated()
    step = LanguageModelTraining.validation_step

    def validation_step(self, batch, batch_idx):
        if self.global_step == steps.signal_at:
            steps.signal_at = None
            signal.raise_signal(signal.SIGINT)
        steps.append(self.global_step)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTraining, "validation_step", validation_step)
    return steps


def test_it_is_left_at_the_next_batch_and_done_first_by_the_resumed_run(cli, micro_recipe, tmp_path, validated):
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1", "training.micro_batch=1", "--resume", "auto"]
    assert cli(*arguments, "--run-dir", "straight").code == 0
    assert validated.count(10) == 4, "batches"
    validated.clear()

    validated.signal_at = 10
    done = cli(*arguments)
    assert done.code == 130
    assert "stopped; step 10 is saved" in done.err
    assert validated.count(10) == 1, "the one that was being computed"
    assert exact_rows(tmp_path / "runs/micro")[-1]["split"] == "train"

    again = cli(*arguments)
    assert again.code == 0, again.err
    assert validated.count(10) == 5
    assert exact_rows(tmp_path / "runs/micro") == exact_rows(tmp_path / "straight")
    memory = [(tmp_path / name / "memory.jsonl").read_text() for name in ("runs/micro", "straight")]
    assert memory[0] == memory[1]


def test_interrupted_twice_it_is_still_made_up_for(cli, micro_recipe, tmp_path, validated):
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1", "training.micro_batch=1", "--resume", "auto"]
    for _ in range(2):
        validated.signal_at = 5
        assert cli(*arguments).code == 130
    assert cli(*arguments).code == 0
    steps = [row["step"] for row in exact_rows(tmp_path / "runs/micro") if row["split"] == "validation"]
    assert steps == ["5", "10", "15", "20"]


def test_a_run_that_is_to_have_no_validation_any_more_does_not_make_up_for_it(cli, micro_recipe, tmp_path, validated):
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1", "training.micro_batch=1", "--resume", "auto"]
    validated.signal_at = 5
    assert cli(*arguments).code == 130
    validated.clear()
    none = ("training.validation_windows=0", "training.validate_every=null", "training.steps=8")
    done = cli(*arguments, *none)
    assert done.code == 0, done.err
    assert validated == []
    assert [row["step"] for row in exact_rows(tmp_path / "runs/micro")] == [str(step) for step in range(1, 9)]


def test_the_last_validation_is_finished(cli, micro_recipe, validated):
    validated.signal_at = 20
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 0, done.err
    assert "validation perplexity" in done.out
