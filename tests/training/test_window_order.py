"""Which windows a step sees, through the real Trainer: the same ones however the run is cut up and read ahead."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dla_train.training import fit as fit_module

PIECES = ("--run-dir", "pieces", "--resume", "auto", "schedule.warmup=1")


class Recorder(Callback):
    """Notes the windows of every optimizer step by a fingerprint of their tokens."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[int, ...]]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.setdefault(trainer.global_step, []).extend(tuple(window.tolist()) for window in batch)


@pytest.fixture
def recorded(cli, micro_recipe, monkeypatch):
    """Run `fit` with some settings; returns the windows by step."""
    build = fit_module.build_trainer

    def run(*arguments: str) -> dict[int, list[tuple[int, ...]]]:
        recorder = Recorder()

        def build_and_watch(config, *, callbacks, **rest):
            return build(config, callbacks=[*callbacks, recorder], **rest)

        monkeypatch.setattr(fit_module, "build_trainer", build_and_watch)
        done = cli("fit", "--recipe", micro_recipe, "checkpoint.every=null", "report.prompt=null", *arguments)
        assert done.code == 0, done.err
        return recorder.seen

    return run


@pytest.fixture
def straight(recorded):
    return recorded("--run-dir", "straight", "training.steps=9", "schedule.warmup=1")


def test_every_step_sees_its_global_batch(straight):
    assert list(straight) == list(range(9))
    assert all(len(batch) == 4 for batch in straight.values())
    assert len({window for batch in straight.values() for window in batch}) == 36, "no window twice within an epoch"


def test_another_seed_is_another_order(recorded, straight):
    other = recorded("--run-dir", "other", "training.steps=9", "schedule.warmup=1", "seed=1")
    assert [*other.values()] != [*straight.values()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_three_pieces_neither_skips_nor_repeats(recorded, straight, workers):
    pieces = {}
    for steps in (2, 5, 9):
        windows = recorded(*PIECES, f"training.steps={steps}", f"data.workers={workers}")
        assert not pieces.keys() & windows.keys()
        pieces |= windows
    assert pieces == straight


def test_another_micro_batch_keeps_the_steps_together(recorded, straight):
    pieces = {}
    for steps, micro_batch in ((3, 1), (5, 4), (9, 2)):
        pieces |= recorded(*PIECES, f"training.steps={steps}", f"training.micro_batch={micro_batch}")
    assert pieces == straight, "also in the same order"


def test_epochs_differ_and_hold_every_window_once(recorded):
    # 5,827 tokens make 58 windows of 100; a step of 29 takes half of them.
    windows = recorded(
        "--run-dir",
        "long",
        "training.steps=4",
        "data.window=100",
        "training.global_batch=29",
        "training.micro_batch=29",
    )
    epochs = [windows[0] + windows[1], windows[2] + windows[3]]
    assert [len(set(epoch)) for epoch in epochs] == [58, 58]
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]


def test_nothing_of_a_step_is_left_to_chance_outside(recorded):
    """Whatever a process did before training must not show in its order."""
    torch.manual_seed(1)
    one = recorded("--run-dir", "one", "training.steps=4")
    torch.manual_seed(2)
    assert recorded("--run-dir", "two", "training.steps=4") == one
