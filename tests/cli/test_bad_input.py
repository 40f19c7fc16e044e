"""Data, folders and sizes that do not work: one sentence with value and way out, exit code 2, nothing left behind."""

import os

import pytest

CASES = {
    "missing corpus": (["data.path=nowhere"], "on the command line: data.path: no corpus at nowhere"),
    "empty corpus": (["data.path=empty.txt"], "empty.txt is empty"),
    "empty directory": (["data.path=folder"], "data.path: no text in folder"),
    "not text": (["data.path=binary.txt"], "binary.txt is not UTF-8 text: byte 0xff"),
    "corpus shorter than a window": (["data.window=100000"], "data.window: "),
    "validation shorter than a window": (["data.window=2000"], "too few for one window of 2,000"),
    "vocabulary too large": (["data.vocab_size=90000"], "data.vocab_size: vocabulary of 90,000 asked for"),
    "batches that do not divide": (["training.global_batch=5"], "global_batch is 5, not a multiple of micro_batch 2"),
    "no GPU": (["training.accelerator=gpu"], "it is gpu, but PyTorch sees no GPU here. Use auto or cpu."),
    "run folder is a file": (["--run-dir", "empty.txt"], "the run folder empty.txt is a file."),
    "run folder below a file": (
        ["--run-dir", "empty.txt/run"],
        "cannot write the run folder empty.txt/run: Not a directory.",
    ),
    "run folder of others": (["--run-dir", "folder/full"], "folder/full is not empty and holds no run"),
    "run folder nobody may write": (["--run-dir", "/proc/run"], "cannot write the run folder /proc/run: "),
    "no checkpoint": (["--resume", "nowhere"], "there is no checkpoint at nowhere."),
    "no such word": (["--resume", "always"], "or a run folder; `fit --resume` takes never and auto, too."),
    "an unset variable": (["--resume", ""], "--resume: '' names no place; give never, auto, PATH or auto:PATH"),
    "another one": (["--resume", "auto:"], "--resume: 'auto:' names no place; give never, auto, PATH or auto:PATH"),
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "folder" / "full" / "thesis.tex").write_text("x")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_bad_input(cli, micro_recipe, place, cache_directory, case):
    import torch

    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    arguments, expected = CASES[case]
    before = sorted(os.walk(place)), sorted(path.name for path in (cache_directory / "corpora").glob(".*.tmp"))
    done = cli("fit", "--recipe", micro_recipe, *arguments)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert error.startswith("dla-train: error: ")
    assert expected in error
    assert "Traceback" not in done.err
    assert (
        sorted(os.walk(place)),
        sorted(path.name for path in (cache_directory / "corpora").glob(".*.tmp")),
    ) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "--recipe", "tiny", "--dry-run", "--run-dir", ""],
        ["submit", "--recipe", "tiny", "--dry-run", "--resume", ""],
        ["export", "--checkpoint", "runs/tiny", "--to", ""],
        ["eval", "--checkpoint", "runs/tiny", "--tasks", "needles", "--out", ""],
        ["inspect", "--checkpoint", "runs/tiny", "--text", "a.txt", "--out", ""],
    ],
    ids=lambda arguments: " ".join((arguments[0], arguments[-2])),
)
def test_an_empty_name_is_not_the_current_folder(cli, tmp_path, arguments):
    """As a script gives it whose variable is not set."""
    done = cli(*arguments)
    assert done.code == 2
    assert f"{arguments[-2]}: the name of the folder is empty; `.` is the current one" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_used_is_named_and_no_fault_of_the_program(cli, micro_recipe, tmp_path):
    """Such as one of a run that another user began, or root in a container."""
    run = tmp_path / "runs" / "micro"
    (run / "logs").mkdir(parents=True)
    (run / ".lock").touch()
    (run / "metrics.csv").mkdir()
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(
        "dla-train: error: cannot use runs/micro/metrics.csv: Is a directory. See to it that it is what it should be "
    )


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_recipe(cli, micro_recipe, place, monkeypatch):
    monkeypatch.setenv("DLA_TRAIN_CACHE", str(place / "empty.txt" / "cache"))
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert error.startswith("dla-train: error: cannot write the cache directory ")
    assert "DLA_TRAIN_CACHE" in error
    assert not (place / "runs").exists()
