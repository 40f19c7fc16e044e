"""The recipe's `profile` section: what is written, that training stays the same, and that it survives what runs do."""

import gzip
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dla_train.callbacks.config import ProfileConfig
from dla_train.callbacks.profiling import Profiling
from dla_train.training.module import LanguageModelTraining
from tests.training.exact_rows import exact_rows

QUICK = (
    "report.prompt=null", "report.bigram=false", "training.validate_every=null", "schedule.warmup=1", "model.layers=1",
)  # fmt: skip
WHOLE = "training.micro_batch=4"  # of the global batch of 4; else two micro-batches make a step, and twice the events
TRACE, TABLE = (f"step-{{:08d}}-rank-0.{what}" for what in ("trace.json.gz", "operators.txt"))


@pytest.fixture
def fit(cli, micro_recipe):
    return lambda name, *settings: cli("fit", "--recipe", micro_recipe, *QUICK, "--run-dir", name, *settings)


def recorded_steps(folder, first):
    """How many whole steps the trace has."""
    events = json.loads(gzip.decompress((folder / "profile" / TRACE.format(first)).read_bytes()))["traceEvents"]
    return sum(event["name"].startswith("ProfilerStep#") for event in events)


def test_steps_are_recorded_and_training_stays_the_same(fit, tmp_path):
    assert fit("plain", "training.steps=6").code == 0
    done = fit("shown", "training.steps=6", "profile.start=3", "profile.steps=2")
    assert done.code == 0, done.err
    assert exact_rows(tmp_path / "shown") == exact_rows(tmp_path / "plain")
    assert not (tmp_path / "plain/profile").exists()
    names = {path.name for path in (tmp_path / "shown/profile").iterdir()}
    assert names == {TRACE.format(3), TABLE.format(3)}, "no snapshot without a GPU"
    assert recorded_steps(tmp_path / "shown", 3) == 2
    table = (tmp_path / "shown/profile" / TABLE.format(3)).read_text()
    assert table.startswith("rank 0, from step 3 to the end of step 4;")
    assert "aten::mm " in table
    assert "profile from step 3 on: shown/profile/step-00000003-rank-0.trace.json.gz" in done.err


def test_a_resumed_run_may_be_profiled_and_records_what_is_left(fit, tmp_path):
    assert fit("run", WHOLE, "training.steps=4").code == 0
    done = fit("run", WHOLE, "training.steps=8", "--resume", "auto", "profile={start: 3, steps: 4}")
    assert done.code == 0, done.err
    assert recorded_steps(tmp_path / "run", 5) == 2, "steps 5 and 6; the first without a warm-up"
    done = fit("run", WHOLE, "training.steps=9", "--resume", "auto", "profile={start: 3, steps: 4}")
    assert "profile: steps 3 to 6 are done; nothing is recorded." in done.err
    assert [path.name for path in (tmp_path / "run/profile").glob("*.gz")] == [TRACE.format(5)]
    assert fit("run", WHOLE, "training.steps=10", "--resume", "auto").code == 0, "and be left alone again"


def test_a_run_that_ends_within_the_steps_writes_those_that_it_had(fit, tmp_path):
    assert fit("run", WHOLE, "training.steps=4", "profile={start: 3, steps: 50}").code == 0
    assert recorded_steps(tmp_path / "run", 3) == 2


def test_a_step_that_fails_leaves_what_was_recorded(fit, tmp_path, monkeypatch):
    step = LanguageModelTraining.training_step

    def failing(module, batch, index):
        if module.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(module, batch, index)

    monkeypatch.setattr(LanguageModelTraining, "training_step", failing)
    done = fit("run", WHOLE, "training.steps=6", "profile.start=3")
    assert done.code == 1
    assert "out of GPU memory at step 4" in done.err
    assert "or data.window, share windows among more GPUs (strategy.context_parallel), or take" in done.err
    assert "from step 3 to the end of step 3;" in (tmp_path / "run/profile" / TABLE.format(3)).read_text()
    assert "out of GPU memory at step 4" in fit("early", WHOLE, "training.steps=6", "profile.start=5").err
    assert not (tmp_path / "early/profile").exists(), "it failed in the profiler's warm-up"


def test_a_profile_that_cannot_be_written_does_not_end_the_run(fit, tmp_path):
    assert fit("run", WHOLE, "training.steps=2").code == 0
    (tmp_path / "run/profile").write_text("in the way")
    done = fit("run", WHOLE, "training.steps=5", "--resume", "auto", "profile={start: 4, steps: 1}")
    assert done.code == 0, done.err
    assert "cannot write the profile to run/profile: File exists. Training goes on." in done.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("profile.start=0", "profile.start is 0; it must be at least 1"),
        ("profile.steps=0", "profile.steps is 0; it must be at least 1"),
        ("profile.start=21", "profile.start is 21, but training.steps is only 20; take an earlier step"),
        ("profile.begin=3", "profile.begin is not a key (given 3). Keys in profile: start, steps."),
        ("profile=3", "profile must be a section with keys (start, steps), but is 3."),
    ],
)
def test_what_cannot_be_profiled_is_refused(cli, micro_recipe, setting, message):
    done = cli("show", micro_recipe, setting)
    assert done.code == 2
    assert message in done.err


def test_on_cuda_the_memory_is_recorded_over_the_same_steps_and_never_longer(tmp_path, monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: calls.append(path))
    trainer: Any = SimpleNamespace(global_step=0, max_steps=9, global_rank=1, accumulate_grad_batches=1)
    module: Any = SimpleNamespace(device=torch.device("cuda", 0))
    callback = Profiling(ProfileConfig(start=3, steps=1), tmp_path / "profile")
    callback.on_train_start(trainer, module)
    moments = []
    for step in range(5):
        callback.on_train_batch_start(trainer, module, None, step)
        moments.append(len(calls))
        torch.ones(3).sum()
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, step)
    assert moments == [0, 1, 1, 3, 3], "from the profiler's warm-up, step 2, to the end of step 3"
    assert calls[0]["stacks"] == "python"
    assert calls[1:] == [str(tmp_path / "profile/step-00000003-rank-1.memory.pickle"), {"enabled": None}]
