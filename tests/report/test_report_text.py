"""The report says whether its run came to its end, and what it leaves out."""

from dataclasses import replace

from dla_train.report.facts import Facts
from dla_train.report.text import render

FINISHED = Facts(
    steps=330,
    planned_steps=330,
    tokens=675_840,
    seconds=240.0,
    tokens_per_second=3000.0,
    skipped_steps=0,
    device_memory_gb=None,
    parameters=1_760_216,
    training_loss=4.6,
    training_loss_steps=50,
    validation_loss=4.5,
    validation_perplexity=90.0,
    bigram_loss=4.3,
    answer_accuracy=None,
    boundary_rate={},
    slots_in_use={},
)


def test_an_unfinished_run_says_so_before_its_figures_and_beside_the_bigram():
    text = render("tiny", replace(FINISHED, steps=20), None, None, "my runs/tiny")
    notice, table = text.index("This run is not finished: it stopped at step 20 of 330"), text.index("| quantity")
    assert notice < table
    assert "Go on with: dla-train fit --run-dir 'my runs/tiny' --resume auto" in text
    assert "4.3000 (the model is 0.200 worse, after 6% of its steps)" in text


def test_a_finished_run_does_not():
    text = render("tiny", FINISHED, None, None, "runs/tiny")
    assert "not finished" not in text
    assert "4.3000 (the model is 0.200 worse)" in text
    assert "skipped" not in text


def test_skipped_steps_are_told():
    text = render("tiny", replace(FINISHED, skipped_steps=2), None, None, "runs/tiny")
    assert "| skipped steps         | 2, which changed no weight: no finite gradient, or a spike |" in text


def test_the_training_loss_says_which_steps_it_leaves_out():
    without_validation = replace(FINISHED, validation_loss=None)
    for facts, told in [
        (without_validation, "4.6000 nats per token (mean of the last 50 steps; no validation)"),
        (
            replace(without_validation, training_loss_steps=48),
            "4.6000 nats per token (mean of the last 50 steps without 2 whose loss is no number; no validation)",
        ),
        (
            replace(without_validation, training_loss=None, training_loss_steps=0),
            "no number in the last 50 steps; no validation",
        ),
    ]:
        assert f"| training loss | {told} " in render("tiny", facts, None, None, "runs/tiny")
