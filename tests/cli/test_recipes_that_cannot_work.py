"""A paper recipe set to something that cannot work is refused before anything is written, in one sentence that names
key, value and what is allowed."""

import pytest

CASES = {
    "heads that do not divide the width": (
        ["transformer-780m", "model.mixer.heads=7"],
        "model.hidden is 1536 and mixer.heads is 7; hidden must be a multiple of twice the heads",
    ),
    "heads that the groups do not divide": (
        ["mamba2-dla-780m", "model.mixer.groups=5"],
        "model.mixer.heads is 48 and groups is 5; heads must be a multiple of groups",
    ),
    "no heads": (
        ["gdn-790m", "model.mixer.heads=0"],
        "model.mixer.heads is 0; it must be a whole number of at least 1",
    ),
    "no slots": (
        ["gdn-dla-790m", "model.mixer.memory.capacity=0"],
        "model.mixer.memory.capacity is 0; it must be a whole number of at least 1",
    ),
    "fewer levels than one": (
        ["mamba2-loglinear-780m", "model.mixer.memory.capacity=-1"],
        "model.mixer.memory.capacity is -1; it must be a whole number of at least 1",
    ),
    "threshold below the score's range": (
        ["mamba2-dla-780m", "model.mixer.memory.threshold=-0.1"],
        "model.mixer.memory.threshold is -0.1; it must lie in [0, 2], the range of the score",
    ),
    "threshold above the score's range": (
        ["mamba2-dla-780m", "model.mixer.memory.threshold=2.01"],
        "model.mixer.memory.threshold is 2.01; it must lie in [0, 2], the range of the score",
    ),
    "a memory for a mixer that has none": (
        ["transformer-780m", "model.mixer.memory=dynamic"],
        "model.mixer.memory is not a key (given 'dynamic'). Keys in model.mixer (kind attention): kind, heads,",
    ),
    "a step that micro-batches do not fill": (
        ["mamba2-780m", "training.micro_batch=3"],
        "training.global_batch is 32, not a multiple of micro_batch 3; 30 or 33 would be",
    ),
    "a warm-up longer than the run": (
        ["mamba2-780m", "training.steps=1000"],
        "schedule.warmup is 1024, but training.steps is only 1000; the warm-up must end before the run does",
    ),
    "a vocabulary that the model does not have": (
        ["mamba2-780m", "model.vocab_size=30000"],
        "model.vocab_size is 30000, but the tokenizer of data.vocab_size makes ids up to 31999; set both to one number",
    ),
    "a text that is not there": (
        ["mamba2-780m", "training.accelerator=cpu"],
        "data.path: no prepared tokens at tokens/long-data-collections: no such directory.",
    ),
    "a window longer than the text": (
        ["gdn-790m", "training.accelerator=cpu", "data={kind: text, path: CORPUS, vocab_size: 300, window: 16384}"],
        "data.window: ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_training(cli, text_corpus, tmp_path, case):
    (name, *settings), expected = CASES[case]
    settings = [setting.replace("CORPUS", str(text_corpus)) for setting in settings]
    done = cli("fit", "--recipe", name, *settings)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert error.startswith("dla-train: error: ")
    assert expected in error
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_window_longer_than_the_text_names_both_lengths(cli, text_corpus):
    data = f"data={{kind: text, path: {text_corpus}, vocab_size: 300, window: 16384}}"
    done = cli("fit", "--recipe", "mamba2-780m", "training.accelerator=cpu", data)
    assert "16,384" in done.err
    assert "too few for one window" in done.err


def test_a_paper_recipe_trains_through_the_command_line_at_reduced_size(cli, text_corpus, tmp_path):
    done = cli(
        *("fit", "--recipe", "gdn-dla-790m", f"data={{kind: text, path: {text_corpus}, vocab_size: 300, window: 48}}"),
        *("model.hidden=32", "model.layers=1", "model.mixer.heads=2", "model.mixer.key_dim=8"),
        *("model.mixer.value_dim=16", "training.steps=2", "schedule.warmup=1", "training.global_batch=4"),
        *("training.accelerator=cpu", "training.validation_windows=4", "logging.tensorboard=false"),
    )
    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "gdn-dla-790m" / "report.md").is_file()
