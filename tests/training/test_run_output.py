"""What a finished run leaves and says."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from dla_data.corpora import TextCorpus
from dla_data.ngram import BigramModel
from dla_data.prepare import prepare_corpus
from dla_data.windows import PackedWindows
from dla_train.callbacks.memory_log import MemoryLog
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.errors import RunError
from dla_train.report.text import duration
from dla_train.runs.metrics_file import MetricsFile, read_rows


@pytest.fixture
def run(cli, micro_recipe):
    done = cli(
        "fit", "--recipe", micro_recipe, "training.steps=6", "logging.tensorboard=true", "logging.memory_every=2"
    )
    assert done.code == 0, done.err
    return done, Path("runs/micro")


def test_the_folder_of_a_run(run, micro_recipe):
    _, folder = run
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "recipe.yaml",
        "environment.json",
        "tokenizer.json",
        "metrics.csv",
        "logs/run.log",
        "report.md",
        "report.json",
        "loss.png",
        "checkpoints/step-00000006/state.ckpt",
        "checkpoints/step-00000006/manifest.json",
    } <= names
    settings = ["training.steps=6", "logging.tensorboard=true", "logging.memory_every=2"]
    assert load(find(str(folder / "recipe.yaml"))).recipe == load(find(str(micro_recipe)), settings).recipe
    (start,) = json.loads((folder / "environment.json").read_text())["starts"]
    assert start["first_step"] == 0
    assert start["packages"]["torch"]
    assert "step 6/6  validation loss" in (folder / "logs" / "run.log").read_text()


@pytest.fixture
def full_log(tmp_path):
    """The log of the next run lies on a disk without room."""
    logs = tmp_path / "runs/micro/logs"
    logs.mkdir(parents=True)
    (logs / "run.log").symlink_to("/dev/full")
    (logs.parent / ".lock").touch()


@pytest.mark.usefixtures("full_log")
def test_a_log_that_cannot_be_written_is_said_once_and_costs_nothing_else(cli, micro_recipe):
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4")
    assert done.code == 0, done.err
    assert done.err.count("run.log cannot be written ([Errno 28] No space left on device): lines are missing") == 1
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("full_log")
def test_the_error_of_a_run_is_not_replaced_by_that_of_its_log(cli, micro_recipe, monkeypatch):
    def refuse(*arguments):
        raise RunError("no row can be written")

    monkeypatch.setattr(MetricsFile, "append", refuse)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4")
    assert done.code == 1
    assert "dla-train: error: no row can be written\n" in done.err


@pytest.mark.parametrize("first", [0, 20])
def test_events_that_cannot_be_written_are_said_once_and_cost_nothing_else(cli, micro_recipe, monkeypatch, first):
    """Refused to the thread that writes them, from the beginning or later."""
    written = []

    def refuse(self, data):
        written.append(data)
        if len(written) > first:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", refuse)
    done = cli("fit", "--recipe", micro_recipe, "logging.tensorboard=true", "logging.histograms_every=1")
    assert done.code == 0, done.err
    assert done.err.count("TensorBoard's events cannot be written to runs/micro/tensorboard (No space left on") == 1
    assert "Traceback" not in done.err
    assert read_rows(Path("runs/micro/metrics.csv"))[-1]["step"] == 20


def test_what_training_cannot_write_is_told_with_what_is_saved(cli, micro_recipe, monkeypatch):
    def refuse(self, step, *others):
        if step == 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryLog, "write", refuse)
    done = cli("fit", "--recipe", micro_recipe, "logging.histograms_every=1")
    assert done.code == 1
    assert (
        "dla-train: error: a file in runs/micro could not be written: No space left on device. The newest checkpoint "
        "is that of step 4. Make room there, then go on with --resume auto.\n" in done.err
    )


def test_metrics_have_every_step_and_the_memories(run):
    _, folder = run
    rows = read_rows(folder / "metrics.csv")
    assert [(row["step"], row["split"]) for row in rows] == [
        (1, "train"), (2, "train"), (3, "train"), (4, "train"), (5, "train"), (5, "validation"),
        (6, "train"), (6, "validation"),
    ]  # fmt: skip
    train = [row for row in rows if row["split"] == "train"]
    assert [row["tokens"] for row in train] == [96 * step for step in range(1, 7)]
    assert [row["lr"] for row in train][:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert all(row["grad_norm"] > 0 and row["tokens_per_second"] > 0 for row in train)
    assert all(before["seconds"] < after["seconds"] for before, after in pairwise(train))
    measured = [row["step"] for row in train if "boundary_rate.1" in row]
    assert measured == [1, 3, 5], "every second step, the first one included"
    assert all(
        0 <= row["boundary_rate.0"] <= 1 <= row["slots_in_use.0"] <= 4 for row in train if "slots_in_use.0" in row
    )
    validation = rows[-1]
    assert validation["perplexity"] == pytest.approx(2.718281828459045 ** validation["loss"])
    assert "boundary_rate.0" in validation


def test_the_report_agrees_with_the_metrics(run, text_corpus, cache_directory):
    done, folder = run
    data = json.loads((folder / "report.json").read_text())
    last = read_rows(folder / "metrics.csv")[-1]
    assert data["validation_loss"] == last["loss"]
    assert data["steps"] == 6
    assert data["tokens"] == 576
    assert data["boundary_rate"] == {"0": last["boundary_rate.0"], "1": last["boundary_rate.1"]}

    corpus = prepare_corpus(TextCorpus(text_corpus), 300, cache_directory)
    windows = PackedWindows(corpus.validation, 24)
    chosen = [windows[index * len(windows) // 4] for index in range(4)]
    bigram = BigramModel.fit(corpus.train.read(0, corpus.train.tokens), 300)
    expected = sum(bigram.nll(window[:-1].numpy(), window[1:].numpy()) for window in chosen) / 4
    assert data["bigram_loss"] == pytest.approx(expected)

    text = (folder / "report.md").read_text()
    assert done.out.strip() == text.strip()
    assert f"{last['loss']:.4f} nats per token" in text
    assert f"{expected:.4f} (the model is" in text
    assert re.search(r"\| 1 +\| +\d+\.\d% +\| \d\.\d +\|", text)
    assert "alpha beta▸" in text
    assert "Run folder: runs/micro\nLoss curve: runs/micro/loss.png\n" in text


def test_the_picture_of_the_loss_is_one(run):
    _, folder = run
    with Image.open(folder / "loss.png") as picture:
        assert picture.size[0] >= 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50, "not an empty page"


def test_tensorboard_has_the_same_numbers_and_forgets_steps_that_were_undone(run, cli, micro_recipe):
    _, folder = run
    rows = read_rows(folder / "metrics.csv")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert logged == [(row["step"], pytest.approx(row["loss"])) for row in rows if row["split"] == "train"]
    assert "validation/perplexity" in events.Tags()["scalars"]

    # The checkpoint of step 6 is lost: the run goes on from step 4, and steps 5 and 6 are there once.
    (folder / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    assert (
        cli("fit", "--recipe", micro_recipe, "training.steps=6", "--resume", "auto", "logging.tensorboard=true").code
        == 0
    )
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_lightning_is_quiet_and_progress_is_told(run):
    done, _ = run
    assert "GPU available" not in done.err
    assert "Tip" not in done.err
    assert "`Trainer.fit` stopped" not in done.err
    assert "does not have many workers" not in done.err
    assert re.search(r"step 3/6  loss \d\.\d{4}  lr 1\.00e-02  [\d,]+ tokens/s  \d\d:\d\d left", done.err)


def test_lines_are_as_far_apart_as_asked(cli, micro_recipe):
    done = cli(
        "fit", "--recipe", micro_recipe, "logging.console_seconds=1000", "report.prompt=null", "report.bigram=false"
    )
    assert len(re.findall(r"^step \d+/20  loss", done.err, re.MULTILINE)) == 2, "the first and the last"
    assert "bigram" not in done.out
    assert "Sample" not in done.out


def test_weights_in_bfloat16_are_warned_of(cli, micro_recipe):
    short = ("fit", "--recipe", micro_recipe, "training.steps=4", "training.validate_every=null", "--run-dir")
    warned = cli(*short, "half", "training.precision=bf16-true")
    assert warned.code == 0, warned.err
    assert "updates below 1/256 of a weight are lost" in warned.err
    assert "1/256" not in cli(*short, "mixed", "training.precision=bf16-mixed").err


def test_warnings_of_others_still_show(cli, micro_recipe, monkeypatch):
    import warnings

    from dla_train.training.module import LanguageModelTraining

    step = LanguageModelTraining.training_step

    def warn(self, batch, batch_idx):
        warnings.warn("the moon is full", stacklevel=1)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTraining, "training_step", warn)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4")
    assert "warning: the moon is full" in done.err
    assert "the moon is full" in Path("runs/micro/logs/run.log").read_text()


@pytest.fixture
def on_terminal(start_process, micro_recipe):
    """Run `fit` on a terminal of some size, interrupt it when it has said a thing; gives its exit code and words."""

    def run(rows, columns, *settings, interrupt_at=None):
        controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        settings = ("report.prompt=null", *settings)
        process = start_process("-m", "dla_train", "fit", "--recipe", micro_recipe, *settings, stderr=terminal)
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # how the end of a terminal shows
            while block := os.read(controller, 4096):
                said += block
                if interrupt_at is not None and interrupt_at in said:
                    process.send_signal(signal.SIGINT)
                    interrupt_at = None
        process.communicate()
        os.close(controller)
        return process.returncode, said.decode().replace("\r", "\n")

    return run


def test_a_terminal_gets_a_bar(on_terminal, tmp_path):
    code, text = on_terminal(40, 120)
    assert code == 0, text
    assert re.search(
        r"100%\|.* 20/20 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(step/s|s/step), loss \d\.\d{3}, [\d,]+ tokens/s\]", text
    )
    assert "validating:" in text
    assert re.search(r"^step 20/20  validation loss", text, re.MULTILINE), "above the bar, on a line of its own"
    log = (tmp_path / "runs/micro/logs/run.log").read_text()
    assert "step 20/20  loss" in log, "the log has no bar, and so its lines"


def test_a_terminal_of_no_size_gets_lines(on_terminal):
    code, text = on_terminal(0, 0, "training.steps=4")
    assert code == 0, text
    assert "step 4/4  loss" in text


def test_how_to_go_on_stands_alone_below_the_bar(on_terminal):
    code, text = on_terminal(24, 100, "training.steps=100000", interrupt_at=b"tokens/s")
    assert code == 130, text
    last, end = text.rstrip().split("\n")[-2:]
    assert re.fullmatch(
        r"stopped; step \d+ is saved\. Go on with: dla-train fit --run-dir runs/micro --resume auto", end
    )
    assert "stopped" not in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (245, "4 min 05 s"), (7384, "2 h 03 min"), (3.6e6, "1,000 h 00 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_unexpected_failure_leaves_its_traceback_in_the_log(cli, micro_recipe, monkeypatch):
    from dla_train.training.module import LanguageModelTraining

    monkeypatch.setattr(LanguageModelTraining, "training_step", lambda self, batch, batch_idx: 1 // 0)
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 1
    assert "unexpected ZeroDivisionError" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in Path("runs/micro/logs/run.log").read_text()
