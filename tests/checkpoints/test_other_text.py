"""A run goes on with the text that it has read, or says that it is another one."""

import hashlib

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.corpus import open_data
from dla_train.data.windows import WindowsDataModule


def test_other_text_under_the_same_name_is_refused(cli, micro_recipe, run, tmp_path, text_corpus):
    other = tmp_path / "other.txt"
    other.write_text(text_corpus.read_text() + "\nomega alpha token state\n" * 3)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=8", f"data.path={other}", "--resume", "auto")
    assert done.code == 2
    assert "changed since runs/micro/checkpoints/step-00000006 was written" in done.err
    assert "the text is another one" in done.err


@pytest.fixture
def rewrite(text_corpus):
    """Write another text in place of the corpus, until the test ends."""
    original = text_corpus.read_text()
    yield text_corpus.write_text
    text_corpus.write_text(original)


@pytest.fixture
def other_validation_text(tmp_path, text_corpus):
    """A text that differs in its last words, which are validated and not trained on."""
    text = text_corpus.read_text()
    other = tmp_path / "other.txt"
    other.write_text(text[:-500] + text[-500:].replace("alpha", "omega"))
    return other


def test_a_branch_over_text_that_was_changed_in_place_is_refused_and_another_file_is_read(
    cli, micro_recipe, run, tmp_path, text_corpus, rewrite
):
    other = tmp_path / "other.txt"
    other.write_text(text_corpus.read_text() + "\nomega alpha token state\n" * 3)
    branch = ["fit", "--recipe", micro_recipe, "training.steps=8", "--resume", "runs/micro", "--run-dir", "branch"]
    rewrite(other.read_text())
    done = cli(*branch)
    assert done.code == 2
    assert "Restore it, or name the other text in the recipe's data section." in done.err
    done = cli(*branch, f"data.path={other}")
    assert done.code == 0, done.err
    assert "the data or its order is another one than there" in done.err


def test_other_validation_text_is_named_and_read(cli, micro_recipe, run, other_validation_text):
    done = cli("fit", "--recipe", micro_recipe, "training.steps=8", "--resume", "auto")
    assert done.code == 0, done.err
    assert "comparable" not in done.err
    arguments = ["training.steps=10", f"data.path={other_validation_text}"]
    done = cli("fit", "--recipe", micro_recipe, *arguments, "--resume", "auto")
    assert done.code == 0, done.err
    assert (
        "warning: the validation text changed since runs/micro/checkpoints/step-00000008 was written: validation "
        "losses from here on are not comparable with those before" in done.err
    )
    branch = ["--resume", "runs/micro/checkpoints/step-00000008", "--run-dir", "branch"]
    done = cli("fit", "--recipe", micro_recipe, *arguments, *branch)
    assert done.code == 0, done.err
    assert "the validation text changed" in done.err
    assert "another one than there" not in done.err, "training reads on where the run would have"


def test_other_validation_text_means_nothing_to_a_run_without_validation(cli, micro_recipe, run, other_validation_text):
    none = ["training.validation_windows=0", "training.validate_every=null", f"data.path={other_validation_text}"]
    done = cli("fit", "--recipe", micro_recipe, "training.steps=8", *none, "--resume", "auto")
    assert done.code == 0, done.err
    assert "comparable" not in done.err


def test_evaluation_names_other_validation_text(cli, micro_recipe, run, other_validation_text, rewrite):
    asked = ["eval", "--checkpoint", "runs/micro", "--tasks", "perplexity-by-position", "--lengths", "24"]
    assert "comparable" not in cli(*asked, "--out", "same").err
    rewrite(other_validation_text.read_text())
    done = cli(*asked, "--out", "other")
    assert done.code == 0, done.err
    assert (
        "warning: the validation text is not the one that runs/micro had when it saved this checkpoint, so losses are "
        "not comparable with those in its metrics.csv." in done.err
    )


def test_the_text_that_is_compared_is_the_training_text(micro_recipe):
    data = open_data(load(find(str(micro_recipe))))
    assert isinstance(data, WindowsDataModule)
    trained, validated = (
        hashlib.sha256((part.path / "tokens.bin").read_bytes()).hexdigest()
        for part in (data.corpus.train, data.corpus.validation)
    )
    assert data.fingerprints["training text"] == trained != validated


def test_a_branch_may_read_other_text_if_a_setting_says_so(cli, micro_recipe, run, tmp_path, text_corpus, rewrite):
    other = tmp_path / "other.txt"
    other.write_text(text_corpus.read_text() + "\nomega alpha token state\n" * 3)
    branch = ["fit", "--recipe", micro_recipe, "training.steps=8", "--resume", run]
    done = cli(*branch, "--run-dir", "branch", f"data.path={other}")
    assert done.code == 0, done.err
    assert (
        "warning: the data or its order is another one than there: the windows are those of the new order from number "
        "25 on." in done.err
    )
    done = cli(*branch, "--run-dir", "seeds", "seed=1")
    assert done.code == 0, done.err
    assert "seed 0 there and 1 here" in done.err
    assert "the windows are those of the new order from number 25 on." in done.err
    rewrite(other.read_text())
    done = cli(*branch, "--run-dir", "edited")
    assert done.code == 2
    assert "the text is another one" in done.err
