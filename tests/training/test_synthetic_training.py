"""The data kind `synthetic`: order, resume, answers only, accuracy."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dla_data.order import WindowOrder
from dla_data.synthetic import IGNORED, Examples, Mqar
from dla_train.data.consumed import Consumed
from dla_train.data.synthetic import VALIDATION_SEED, SyntheticDataModule
from dla_train.data.synthetic_config import SyntheticData
from dla_train.models import LanguageModel, Mamba2Config, ModelConfig, SingleMemory, initialize
from dla_train.runs.metrics_file import TIMES, read_rows
from dla_train.training.answers import answer
from dla_train.training.config import AdamWConfig, TrainingConfig
from dla_train.training.module import LanguageModelTraining
from dla_train.training.schedules import ConstantSchedule

SYNTHETIC = [
    "data={kind: synthetic, task: {kind: mqar, pairs: [1, 2]}, vocab_size: 16, window: 12}",
    "model.vocab_size=16",
    "report.prompt=null",
    "training.threads=1",
]
TASK = Mqar(pairs=(1, 2))
TRAINING = TrainingConfig(steps=5, global_batch=4, micro_batch=2, accelerator="cpu", validation_windows=6)


def _module(trainer_step: int = 0, **changes: object) -> SyntheticDataModule:
    module = SyntheticDataModule(SyntheticData(task=TASK, vocab_size=16, window=12, **changes), TRAINING, seed=3)

    class Trainer:
        global_rank, world_size, accumulate_grad_batches, global_step = 0, 1, 2, trainer_step

    module.trainer = Trainer()  # type: ignore[assignment]
    return module


def test_step_s_has_the_examples_of_its_global_indices_also_after_a_resume():
    expected = TASK.examples(16, 12, 3, WindowOrder(7, 3).windows(0, 20))
    batches = list(_module(examples=7).train_dataloader())
    assert all(isinstance(batch, Examples) and batch.inputs.shape == (2, 12) for batch in batches)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), expected.inputs)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), expected.targets)
    rest = list(_module(3, examples=7).train_dataloader())
    assert [batch.inputs.tolist() for batch in rest] == [batch.inputs.tolist() for batch in batches[6:]]
    with_workers = list(_module(3, examples=7, workers=2).train_dataloader())
    assert [batch.inputs.tolist() for batch in with_workers] == [batch.inputs.tolist() for batch in rest]


def test_a_branch_with_another_batch_counts_the_answers_of_the_examples_it_reads():
    module = _module(3)
    module.begun = Consumed(step=2, windows=5, tokens=60)
    batches = list(module.train_dataloader())
    for step in (3, 4):
        first, second = batches[2 * (step - 3) :][:2]
        answers = sum(int((batch.targets != IGNORED).sum()) for batch in (first, second))
        assert module.answers_of_step(step) == answers
    expected = TASK.examples(16, 12, 3, module.order.windows(5 + 4, 8))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), expected.targets)


def test_validation_examples_are_the_same_for_every_seed_and_never_trained_on():
    (first, second, third) = _module().val_dataloader()
    expected = TASK.examples(16, 12, VALIDATION_SEED, np.arange(6))
    assert torch.equal(torch.cat([first.inputs, second.inputs, third.inputs]), expected.inputs)


def test_ever_new_examples_do_not_come_again():
    module = _module()
    assert module.epochs(10**6) is None
    assert _module(examples=8).epochs(20) == 2.5
    assert len(np.unique(module.order.windows(0, 10_000))) == 10_000


def test_an_answer_is_right_where_the_likeliest_token_is_the_target():
    mixer = Mamba2Config(heads=2, head_dim=8, state_dim=8, memory=SingleMemory())
    model = initialize(LanguageModel(ModelConfig(vocab_size=16, hidden=16, layers=1, mixer=mixer)), 0)
    examples = TASK.examples(16, 12, 0, np.arange(40))
    counts = examples.targets != IGNORED
    with torch.no_grad():
        logits, _ = model(examples.inputs)
    told = Examples(
        examples.inputs, torch.where(counts & (torch.arange(12) % 4 == 0), logits.argmax(-1), examples.targets)
    )
    found = answer(model, told)
    assert torch.equal(found.row, counts.nonzero()[:, 0])
    assert torch.equal(found.is_right, (logits.argmax(-1) == told.targets)[counts])
    assert 0.3 < found.is_right.float().mean() < 1
    assert found.loss.mean().item() == pytest.approx(model.loss(*told).item(), rel=1e-5)


def test_a_run_counts_answers_only_and_is_the_same_when_it_is_stopped_and_goes_on(cli, micro_recipe, tmp_path):
    arguments = ["fit", "--recipe", micro_recipe, *SYNTHETIC]
    done = cli(*arguments, "--run-dir", "straight")
    assert done.code == 0, done.err
    rows = [row for row in read_rows(tmp_path / "straight" / "metrics.csv") if row["split"] == "validation"]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert all(0 <= row["answer_accuracy"] <= 1 for row in rows)
    assert 2 < rows[0]["loss"] < 3, "about log 16 at the start: filler, which is half of the tokens, does not count"
    assert "ever new examples of mqar; 20 steps of 48 tokens; 4 validation windows of 12" in done.err
    assert f"answers right {rows[-1]['answer_accuracy']:.1%}" in done.err
    assert f"| answers right   | {rows[-1]['answer_accuracy']:.1%}" in done.out
    assert "perplexity" not in done.out
    assert "nats per answer" in done.out
    report = json.loads((tmp_path / "straight" / "report.json").read_text())
    assert report["answer_accuracy"] == rows[-1]["answer_accuracy"]
    assert not (tmp_path / "straight" / "tokenizer.json").exists()

    assert cli(*arguments, "--run-dir", "stopped", "training.max_minutes=1e-9").code == 0
    assert [row["step"] for row in read_rows(tmp_path / "stopped" / "metrics.csv")] == [1, 1]
    again = cli(*arguments, "--run-dir", "stopped", "--resume", "auto")
    assert again.code == 0, again.err
    assert "going on from step 1" in again.err
    times = set(TIMES)

    def exact(name):
        with (tmp_path / name / "metrics.csv").open() as file:
            return [{key: text for key, text in row.items() if key not in times} for row in csv.DictReader(file)]

    assert [row for row in exact("stopped") if (row["step"], row["split"]) != ("1", "validation")] == exact("straight")


def test_micro_batches_count_by_their_answers(cli, micro_recipe, tmp_path):
    """Examples have 1, 2 or 4 answers: a mean of the means of micro-batches is not the mean over answers."""
    found = {}
    for micro_batch in (16, 4, 1):
        folder = tmp_path / f"by {micro_batch}"
        settings = ["training.global_batch=16", f"training.micro_batch={micro_batch}", "training.steps=4"]
        settings += ["data.task.pairs=[1, 2, 4]", "data.window=16", "training.z_loss=1e-3", "training.clip=0.5"]
        done = cli("fit", "--recipe", micro_recipe, *SYNTHETIC, *settings, "--run-dir", folder)
        assert done.code == 0, done.err
        found[micro_batch] = [row for row in read_rows(folder / "metrics.csv") if row["split"] == "train"]
    for micro_batch in (4, 1):
        for column in ("loss", "grad_norm"):
            here, whole = ([row[column] for row in found[number]] for number in (micro_batch, 16))
            assert here == pytest.approx(whole, rel=1e-5), (micro_batch, column)


def test_the_loss_of_every_step_is_the_mean_over_its_own_answers():
    """Not over as many as another step had."""
    config = ModelConfig(
        vocab_size=16, hidden=16, layers=1, mixer=Mamba2Config(heads=2, head_dim=8, state_dim=8, memory=SingleMemory())
    )
    model = initialize(LanguageModel(config), 0)
    module = LanguageModelTraining(model, AdamWConfig(lr=1e-3), ConstantSchedule(), TRAINING, seed=0)
    data, counts = _module(), []
    batches = [*data.train_dataloader()]
    for step in range(TRAINING.steps):
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=0, global_step=step, accumulate_grad_batches=2, optimizers=[SimpleNamespace(param_groups=[])],
            datamodule=data,
        )  # fmt: skip
        losses = []
        for number in (2 * step, 2 * step + 1):
            module.on_train_batch_start(batches[number], number)
            losses.append(module.training_step(batches[number], number).item())
        inputs, targets = (torch.cat(parts) for parts in zip(*batches[2 * step : 2 * step + 2], strict=True))
        counts.append(int((targets != IGNORED).sum()))
        assert sum(losses) / 2 == pytest.approx(model.loss(inputs, targets).item(), rel=1e-5)
    assert len(set(counts)) > 1, "steps differ in their answers"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.task.pairs=[4]"], "data.task.pairs goes up to 4, which needs 4 x 4 = 16 tokens; window is only 12."),
        (["data.task={kind: mqr}"], "data.task.kind must be one of mqar, change_point, copy, but is 'mqr'."),
        (["data.task={kind: copy}", "data.window=13"], "data.window is 13; the task copy needs an even number"),
        (["data.task.pair=[1]"], "data.task.pair is not a key (given [1]). Did you mean data.task.pairs?"),
        (["report.prompt=hello"], "report.prompt is given, but a synthetic task has no words"),
        (["data.examples=0"], "data.examples is 0; it must be at least 1, or null"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(cli, micro_recipe, settings, message):
    done = cli("fit", "--recipe", micro_recipe, *SYNTHETIC, *settings)
    assert done.code == 2
    assert message in done.err


def test_a_run_of_another_task_is_refused(cli, micro_recipe):
    arguments = ["fit", "--recipe", micro_recipe, *SYNTHETIC, "--run-dir", "run"]
    assert cli(*arguments, "training.steps=4").code == 0
    done = cli(*arguments, "--resume", "auto", "data.task.power=1.0")
    assert done.code == 2
    assert "data.task.power 0.01 there and 1.0 here" in done.err
