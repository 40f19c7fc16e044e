"""What befalls the last validation costs no training: the last step is saved before it."""

import signal

import pytest

from dla_train.checkpoints.store import CheckpointStore
from dla_train.checkpoints.writing import Writing
from dla_train.runs.memory_file import MemoryFile
from dla_train.runs.metrics_file import MetricsFile
from dla_train.training import fit
from dla_train.training.module import LanguageModelTraining
from tests.training.exact_rows import exact_rows


@pytest.fixture
def computed(monkeypatch):
    """Steps with a training and with a validation batch; at the last batch of validation of step `failing` something
    fails."""

    class Computed:
        def __init__(self):
            self.trained, self.validated, self.failing = [], [], None

    found = Computed()
    training_step, validation_step = LanguageModelTraining.training_step, LanguageModelTraining.validation_step

    def trained(self, batch, batch_idx):
        found.trained.append(self.global_step)
        return training_step(self, batch, batch_idx)

    def validated(self, batch, batch_idx):
        found.validated.append(self.global_step)
        if self.global_step == found.failing and batch_idx == 1:
            raise ConnectionError("the disk is gone")
        return validation_step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTraining, "training_step", trained)
    monkeypatch.setattr(LanguageModelTraining, "validation_step", validated)
    return found


@pytest.fixture
def fit_auto(cli, micro_recipe):
    """A start of the run in `folder`; returns what it left."""

    def run(*settings, folder="run"):
        given = ("--recipe", micro_recipe, "--run-dir", folder, "--resume", "auto", "training.threads=1", *settings)
        return cli("fit", *given)

    return run


def require_straight_run(fit_auto, tmp_path, *settings):
    """The same rows, distributions and report as those of a run that nothing befell."""
    assert fit_auto(*settings, folder="straight").code == 0
    ours, straight = tmp_path / "run", tmp_path / "straight"
    assert exact_rows(ours) == exact_rows(straight)
    assert (ours / "memory.jsonl").read_text() == (straight / "memory.jsonl").read_text()
    assert (ours / "report.json").read_text().count("validation") == 2
    assert (ours / "report.md").is_file()


@pytest.mark.parametrize("every", [5, "null", 7])
@pytest.mark.parametrize("background", [True, False])
def test_a_last_validation_that_failed_is_all_that_is_done_again(fit_auto, computed, tmp_path, every, background):
    settings = (f"training.validate_every={every}", f"checkpoint.background={background}".lower())
    computed.failing = 20
    assert fit_auto(*settings).code == 1
    assert exact_rows(tmp_path / "run")[-1]["split"] == "train"
    assert not (tmp_path / "run" / "report.md").exists()
    computed.failing = None
    computed.trained.clear()
    computed.validated.clear()

    done = fit_auto(*settings)
    assert done.code == 0, done.err
    assert computed.trained == []
    assert computed.validated == [20, 20]
    assert "step 20/20  validation loss" in done.err
    require_straight_run(fit_auto, tmp_path, *settings)


def test_a_run_without_its_last_validation_is_not_said_to_be_finished(cli, fit_auto, computed, micro_recipe):
    computed.failing = 20
    assert fit_auto("training.validate_every=null").code == 1
    done = cli("fit", "--recipe", micro_recipe, "--run-dir", "run", "training.validate_every=null")
    assert done.code == 2
    assert "run already holds this run, at step 20 of 20: --resume auto goes on with it." in done.err


@pytest.mark.parametrize("lost", [MemoryFile, MetricsFile])
def test_a_run_that_dies_between_its_files_has_each_line_once(fit_auto, computed, monkeypatch, tmp_path, lost):
    """What the last validation found of the memories is written, its row is not; or neither."""
    append = lost.append

    def append_or_die(self, *given):
        if computed.validated[-1:] == [20]:
            raise ConnectionError("the disk is gone")
        append(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(lost, "append", append_or_die)
        assert fit_auto("training.validate_every=null").code == 1
    written = '"step": 20, "split": "validation"' in (tmp_path / "run" / "memory.jsonl").read_text()
    assert written == (lost is MetricsFile)
    assert fit_auto("training.validate_every=null").code == 0
    require_straight_run(fit_auto, tmp_path, "training.validate_every=null")


def test_it_may_fail_again_and_with_fewer_windows_it_may_succeed(fit_auto, computed):
    computed.failing = 20
    assert fit_auto().code == 1
    assert fit_auto().code == 1
    done = fit_auto("training.validation_windows=2")
    assert done.code == 0, done.err
    assert computed.validated[-1:] == [20]
    assert fit_auto("training.validation_windows=2").code == 0
    assert len(computed.trained) == 40, "two micro-batches a step"
    done = fit_auto("training.validation_windows=4")
    assert done.code == 2
    assert "this run is finished, and was 2 when it was validated last" in done.err


@pytest.mark.parametrize("windows", [2, 4])
def test_a_run_that_ends_earlier_than_planned_is_validated_there(fit_auto, computed, monkeypatch, tmp_path, windows):
    """Its last step is one after which no validation was planned."""
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTraining, "on_train_batch_end", lambda self, *given: 1 / (self.global_step - 18))
        assert fit_auto().code == 1
    done = fit_auto("training.steps=16", f"training.validation_windows={windows}")
    assert done.code == 0, done.err
    assert computed.validated[-windows // 2 :] == [16] * (windows // 2)
    rows = [(row["step"], row["split"]) for row in exact_rows(tmp_path / "run")]
    assert rows[-2:] == [("16", "train"), ("16", "validation")]
    assert "no validation" not in (tmp_path / "run" / "report.md").read_text()
    before = computed.validated.copy()
    assert fit_auto("training.steps=16", f"training.validation_windows={windows}").code == 0
    assert computed.validated == before


def test_the_last_validation_begins_when_the_last_step_is_on_disk(fit_auto, monkeypatch, tmp_path):
    """However slow the disk is: a kill in the validation finds the whole checkpoint."""
    monkeypatch.setattr(Writing, "is_written", lambda self: False)
    step, found = LanguageModelTraining.validation_step, []

    def validated(self, batch, batch_idx):
        if self.global_step == 20:
            found.append((tmp_path / "run" / "checkpoints" / "step-00000020").is_dir())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTraining, "validation_step", validated)
    assert fit_auto("training.validate_every=null").code == 0
    assert found == [True, True]


def test_the_last_step_is_written_once(fit_auto, monkeypatch):
    written = []
    new = CheckpointStore.new

    def noted(self, step, *rest):
        written.append(step)
        return new(self, step, *rest)

    monkeypatch.setattr(CheckpointStore, "new", noted)
    assert fit_auto().code == 0
    assert fit_auto().code == 0
    assert written == [4, 8, 12, 16, 20]


def test_a_validation_that_was_done_is_not_done_again(fit_auto, computed, monkeypatch, tmp_path):
    """Neither where only the report is missing nor where more steps are added: the checkpoint is older than it."""

    def fail(*given):
        raise ConnectionError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(fit, "write_report", fail)
        assert fit_auto().code == 1
    assert len(computed.trained) == 40
    assert computed.validated.count(20) == 2
    assert fit_auto().code == 0
    assert (tmp_path / "run" / "report.md").is_file()
    assert fit_auto("training.steps=24").code == 0
    assert computed.validated.count(20) == 2
    steps = [row["step"] for row in exact_rows(tmp_path / "run") if row["split"] == "validation"]
    assert steps == ["5", "10", "15", "20", "24"]


def test_the_last_validation_of_a_run_out_of_time_is_made_up_for_before_the_next_step(fit_auto, computed, tmp_path):
    computed.failing = 1
    assert fit_auto("training.max_minutes=1e-9").code == 1
    assert computed.trained == [0, 0]
    computed.failing = None
    done = fit_auto("training.max_minutes=1e-9")
    assert done.code == 0, done.err
    rows = [(row["step"], row["split"]) for row in exact_rows(tmp_path / "run")]
    assert rows == [("1", "train"), ("1", "validation"), ("2", "train"), ("2", "validation")]


def test_a_validation_that_was_made_up_for_is_not_done_again(fit_auto, computed, monkeypatch, tmp_path):
    """The run fails before its next checkpoint, so it goes on twice from the one that a signal left."""
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTraining, "on_validation_start", lambda self: signal.raise_signal(signal.SIGINT))
        assert fit_auto().code == 130
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTraining, "on_train_batch_end", lambda self, *given: 1 / (self.global_step - 7))
        assert fit_auto().code == 1
    assert computed.validated == [5, 5]
    assert fit_auto().code == 0
    assert computed.validated.count(5) == 2
    require_straight_run(fit_auto, tmp_path)


def test_a_validation_that_is_due_is_forgotten_by_a_run_without_any(fit_auto, computed, monkeypatch):
    """It would be made up for at a later step, if the run goes on with validations once more."""
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTraining, "on_validation_start", lambda self: signal.raise_signal(signal.SIGINT))
        assert fit_auto().code == 130
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTraining, "on_train_batch_end", lambda self, *given: 1 / (self.global_step - 9))
        assert fit_auto("training.validation_windows=0", "training.validate_every=null").code == 1
    assert computed.validated == []
    done = fit_auto()
    assert done.code == 0, done.err
    assert "going on from step 8" in done.err
    assert sorted(set(computed.validated)) == [10, 15, 20]


def test_a_branch_does_not_validate_what_the_other_run_has_validated(cli, fit_auto, computed, micro_recipe):
    assert fit_auto("training.validate_every=null").code == 0
    branch = ("--recipe", micro_recipe, "--run-dir", "branch", "--resume", "run", "training.validate_every=null")
    done = cli("fit", *branch, "training.threads=1", "training.steps=22")
    assert done.code == 0, done.err
    assert computed.validated == [20, 20, 22, 22]
