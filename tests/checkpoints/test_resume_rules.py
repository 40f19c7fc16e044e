import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from dla_train.checkpoints.manifest import Manifest
from dla_train.checkpoints.resume import forbidden_changes
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.corpus import open_data
from dla_train.data.windows import WindowsDataModule


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def run(finished_run, cli, micro_recipe, tmp_path):
    """A folder `runs/micro` with checkpoints of steps 4 and 6, made once and copied."""
    if not (finished_run / "micro").exists():
        assert cli("fit", "--recipe", micro_recipe, "training.steps=6").code == 0
        shutil.copytree("runs/micro", finished_run / "micro")
    else:
        shutil.copytree(finished_run / "micro", tmp_path / "runs" / "micro")
    return Path("runs/micro")


def _fit(cli, recipe, *arguments):
    return cli("fit", "--recipe", recipe, "training.steps=6", *arguments)


def _content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_new_run_does_not_write_into_an_old_one(cli, micro_recipe, run):
    before = _content(run)
    done = _fit(cli, micro_recipe)
    assert done.code == 2
    assert "runs/micro already holds this run, finished at step 6: --resume auto shows its report again." in done.err
    assert "--run-dir DIR" in done.err
    assert _content(run) == before


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("optimizer.lr=0.5", "optimizer.lr 0.01 there and 0.5 here"),
        ("seed=1", "seed 0 there and 1 here"),
        ("training.global_batch=8", "training.global_batch 4 there and 8 here"),
        ("model.hidden=32", "model.hidden 16 there and 32 here"),
        ("model.mixer.memory=single", "model.mixer.memory.capacity 4 there and (absent) here"),
    ],
)
def test_another_recipe_is_refused_with_the_keys_that_differ(cli, micro_recipe, run, resume, setting, named):
    before = _content(run)
    done = _fit(cli, micro_recipe, setting, "--resume", resume)
    assert done.code == 2
    assert "the run folder runs/micro holds a run of another recipe: " in done.err
    assert named in done.err
    assert _content(run) == before


@pytest.mark.parametrize(
    "settings",
    [
        ["training.steps=8"],
        ["training.steps=8", "training.micro_batch=4", "training.validate_every=3"],
        ["training.steps=8", "data.workers=1", "checkpoint.every=3", "report.prompt=null", "description=longer"],
    ],
)
def test_what_does_not_change_the_experiment_may_change(cli, micro_recipe, run, settings):
    done = cli("fit", "--recipe", micro_recipe, "--resume", "auto", *settings)
    assert done.code == 0, done.err
    assert "going on from step 6" in done.err
    assert (run / "checkpoints" / "step-00000008").is_dir()


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "initial_weights",
        "model.mixer.memory.threshold",
        "model.norm_eps",
        "optimizer.weight_decay",
        "optimizer.betas",
        "schedule.kind",
        "schedule.warmup",
        "training.global_batch",
        "training.clip",
        "training.z_loss",
        "training.precision",
        "data.kind",
        "data.window",
        "data.vocab_size",
        "data.documents",
        "data.curriculum",
        "data.streams",
        "data.held_out",
        "data.examples",
        "data.task.pairs",
        "data.sources.edu.weight",
        "data.sources.edu.text_field",
        "data.sources.edu.split",
        "data.sources.edu.at_end",
    ],
)
def test_what_decides_what_is_learned_from_which_windows_may_not_change(key):
    def recipe(value):
        for part in reversed(key.split(".")):
            value = {part: value}
        return value

    assert list(forbidden_changes(recipe(1), recipe(2))) == [key]


def test_a_finished_run_shows_its_report_again_and_changes_nothing_of_it(cli, micro_recipe, run):
    before = _content(run)
    done = _fit(cli, micro_recipe, "--resume", "auto")
    assert done.code == 0
    assert done.out.strip() == (run / "report.md").read_text().strip()
    for name in ("metrics.csv", "report.md", "report.json", "recipe.yaml"):
        assert before[run / name] == (run / name).read_bytes()


def test_a_finished_run_that_has_lost_its_metrics_says_why_there_is_no_report(cli, micro_recipe, run):
    for name in ("report.md", "metrics.csv"):
        (run / name).unlink()
    done = _fit(cli, micro_recipe, "--resume", "auto")
    assert done.code == 1
    assert "dla-train: error: there is no report to write: runs/micro/metrics.csv has no step of this run" in done.err
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=7").code == 0


def test_other_settings_of_the_report_write_it_anew(cli, micro_recipe, run):
    before = _content(run)
    settings = ["report.bigram=false", "report.prompt=gamma", "report.temperature=0"]
    assert _fit(cli, micro_recipe, *settings, "--run-dir", "straight").code == 0
    done = _fit(cli, micro_recipe, *settings, "--resume", "auto")
    assert done.code == 0, done.err
    assert done.out.strip() == (run / "report.md").read_text().strip()
    assert "bigram" not in done.out
    assert "gamma▸" in done.out
    found, expected = (json.loads((folder / "report.json").read_text()) for folder in (run, Path("straight")))
    times = dict.fromkeys(("seconds", "tokens_per_second"))
    assert {**found, **times} == {**expected, **times}, "of the trained weights, too"
    assert (run / "metrics.csv").read_bytes() == before[run / "metrics.csv"]
    again = _fit(cli, micro_recipe, *settings, "--resume", "auto")
    assert again.out == done.out
    back = _fit(cli, micro_recipe, "--resume", "auto")
    assert back.out.encode().strip() == before[run / "report.md"].strip()


def test_a_kill_before_the_new_report_leaves_no_old_one(cli, micro_recipe, run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("dla_train.training.fit.write_report", lambda *arguments: 1 // 0)
        assert _fit(cli, micro_recipe, "--resume", "auto", "report.prompt=gamma").code == 1
    done = _fit(cli, micro_recipe, "--resume", "auto", "report.prompt=gamma")
    assert done.code == 0, done.err
    assert "gamma▸" in done.out


def test_a_run_that_was_cut_short_and_is_to_have_no_more_steps_reports_so(cli, micro_recipe):
    fit = ["fit", "--recipe", micro_recipe, "schedule.warmup=0", "report.prompt=null"]
    first = cli(*fit, "training.steps=2", "training.max_minutes=1e-9")
    assert "it stopped at step 1 of 2" in first.out
    done = cli(*fit, "training.steps=1", "--resume", "auto")
    assert done.code == 0, done.err
    assert "not finished" not in done.out


def test_other_validation_windows_are_refused_where_nothing_is_validated_any_more(cli, micro_recipe, run):
    before = _content(run)
    settings = ["report.bigram=false", "training.validation_windows=null"]
    done = _fit(cli, micro_recipe, "--resume", "auto", *settings)
    assert done.code == 2
    assert (
        "on the command line: training.validation_windows: it is null, but this run is finished, and was 4 when it was "
        "validated last. Leave it at 4, or set more training.steps." in done.err
    )
    assert _content(run) == before
    done = cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=7", *settings)
    assert done.code == 0, done.err


def test_the_report_of_a_shorter_run_does_not_outlive_it(cli, micro_recipe, run):
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=8").code == 0
    for name in ("report.md", "checkpoints/step-00000008/manifest.json"):
        (run / name).unlink()
    done = _fit(cli, micro_recipe, "--resume", "auto")
    assert done.code == 0, done.err
    assert "| steps                 | 6 " in done.out


def test_fewer_steps_than_done_are_refused(cli, micro_recipe, run):
    done = cli("fit", "--recipe", micro_recipe, "training.steps=5", "--resume", "auto")
    assert done.code == 2
    assert (
        "on the command line: training.steps: it is 5, but runs/micro/checkpoints/step-00000006 is past that."
        in done.err
    )


def test_a_checkpoint_of_another_architecture_is_refused(cli, micro_recipe, run):
    done = _fit(
        cli, micro_recipe, "--run-dir", "other", "--resume", run / "checkpoints/step-00000004", "model.hidden=32"
    )
    assert done.code == 2
    assert "step-00000004 is a checkpoint of another architecture: model.hidden 16 there and 32 here." in done.err
    assert not Path("other").exists()


def test_a_checkpoint_of_another_optimizer_is_refused(cli, micro_recipe, run):
    path = run / "checkpoints/step-00000004"
    done = _fit(cli, micro_recipe, "--run-dir", "other", "--resume", path, "optimizer={kind: muon, lr: 0.01}")
    assert done.code == 2
    assert "step-00000004 is a checkpoint of another optimizer: optimizer.kind adamw there and muon here." in done.err
    assert not Path("other").exists()


def test_a_branch_may_change_what_fits_the_state_and_says_so(cli, micro_recipe, run):
    settings = ["optimizer.lr=1e-3", "optimizer.weight_decay=0.5", "schedule.warmup=1", "training.clip=0.1"]
    branch = ["--run-dir", "branch", "training.global_batch=8", *settings]
    done = _fit(cli, micro_recipe, "--resume", run / "checkpoints/step-00000004", *branch)
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
    assert (
        "warning: branched off with other settings: optimizer.lr 0.01 there and 0.001 here, optimizer.weight_decay 0.1 "
        "there and 0.5 here, schedule.warmup 3 there and 1 here, training.global_batch 4 there and 8 here, "
        "training.clip 1.0 there and 0.1 here." in done.err
    )
    assert "the data or its order" not in done.err
    state = torch.load("branch/checkpoints/step-00000006/state.ckpt", weights_only=True)
    decay, no_decay = state["optimizer_states"][0]["param_groups"]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.5, 0.0), "not those of the checkpoint"
    assert 0 < decay["lr"] <= 1e-3
    read = Manifest.read(Path("branch/checkpoints/step-00000006")).consumed
    assert read is not None
    assert read.windows == 4 * 4 + 2 * 8
    again = _fit(cli, micro_recipe, "--resume", "auto", *branch, "training.steps=8")
    assert again.code == 0, again.err
    assert "branched off" not in again.err
    per_window = read.tokens // read.windows
    with open("branch/metrics.csv", newline="") as file:
        tokens = {int(row["step"]): int(row["tokens"]) for row in csv.DictReader(file)}
    assert {step: count / per_window for step, count in tokens.items()} == {5: 24, 6: 32, 7: 40, 8: 48}
    refused = _fit(cli, micro_recipe, "--resume", "auto", "--run-dir", "branch")
    assert refused.code == 2
    assert "optimizer.lr 0.001 there and 0.01 here" in refused.err


@pytest.mark.parametrize("path", ["runs/micro/checkpoints/step-00000004", "runs/micro"])
def test_a_run_can_branch_off_into_a_new_folder(cli, micro_recipe, run, path):
    before = _content(run)
    done = _fit(cli, micro_recipe, "training.steps=8", "--run-dir", "branch", "--resume", path)
    assert done.code == 0, done.err
    assert Path("branch/checkpoints/step-00000008").is_dir()
    assert _content(run) == before


def test_one_command_branches_off_and_goes_on(cli, micro_recipe, run):
    """What a batch script that is run again needs."""
    again = [
        "fit",
        "--recipe",
        micro_recipe,
        "--run-dir",
        "branch",
        "--resume",
        f"auto:{run}/checkpoints/step-00000004",
    ]
    again += ["optimizer.lr=1e-3", "checkpoint.every=1"]
    first = cli(*again, "training.steps=6")
    assert first.code == 0, first.err
    assert f"going on from step 4 ({run}/checkpoints/step-00000004)" in first.err
    assert "branched off with other settings: optimizer.lr 0.01 there and 0.001 here" in first.err
    second = cli(*again, "training.steps=8")
    assert second.code == 0, second.err
    assert "going on from step 6 (branch/checkpoints/step-00000006)" in second.err
    assert "branched off" not in second.err


def test_a_branch_that_has_nothing_to_train_is_refused(cli, micro_recipe, run):
    done = _fit(cli, micro_recipe, "--resume", run, "--run-dir", "branch")
    assert done.code == 2
    assert "training.steps: it is 6, and runs/micro/checkpoints/step-00000006 has all of them" in done.err
    assert not Path("branch").exists()


def test_auto_does_not_begin_a_branch_at_step_0(cli, micro_recipe, run):
    path = run / "checkpoints/step-00000004"
    assert _fit(cli, micro_recipe, "--run-dir", "branch", "--resume", path).code == 0
    shutil.rmtree("branch/checkpoints")  # as a kill before the first of them leaves it
    Path("branch/report.md").unlink()
    before = _content(Path("branch"))
    done = _fit(cli, micro_recipe, "--run-dir", "branch", "--resume", "auto")
    assert done.code == 2
    assert (
        "this run was branched off at step 4, and there is no checkpoint in branch/checkpoints: give --resume PATH "
        "again (the last start was: " in done.err
    )
    assert _content(Path("branch")) == before
    again = _fit(cli, micro_recipe, "--run-dir", "branch", "--resume", path)
    assert again.code == 0, again.err
    assert "going on from step 4" in again.err


def test_a_copy_of_a_checkpoint_under_another_name_is_refused(cli, micro_recipe, run):
    copy = run / "checkpoints/step-00000004-backup"
    shutil.copytree(run / "checkpoints/step-00000004", copy)
    done = _fit(cli, micro_recipe, "--run-dir", "other", "--resume", copy)
    assert done.code == 2
    assert f"there is no checkpoint at {copy}." in done.err
    assert "(a copy has that name, too)" in done.err


def test_the_run_folder_itself_as_path_is_auto(cli, micro_recipe, run):
    (run / "checkpoints/step-00000006/manifest.json").unlink()
    done = _fit(cli, micro_recipe, "--resume", run)
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err


def test_going_back_within_a_folder_is_refused(cli, micro_recipe, run):
    done = _fit(cli, micro_recipe, "--resume", run / "checkpoints/step-00000004")
    assert done.code == 2
    assert "has a newer checkpoint (step 6)" in done.err
    assert "to branch off at this one, give a new folder with --run-dir" in done.err


def test_the_newest_checkpoint_of_the_folder_may_be_named(cli, micro_recipe, run):
    newest = run / "checkpoints/step-00000006"
    done = cli("fit", "--recipe", micro_recipe, "training.steps=7", "--resume", newest)
    assert done.code == 0, done.err
    assert "going on from step 6" in done.err


@pytest.mark.parametrize("resume", ["auto", "never", "auto:elsewhere"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(cli, micro_recipe, run, resume):
    """They may be where a clean-up or another mount has left them, and the record of the run is not written over."""
    shutil.copytree(run, "elsewhere")
    (run / "checkpoints").rename("kept")
    before = _content(run)
    arguments = ["--resume", resume, "checkpoint.every=2"]
    done = _fit(cli, micro_recipe, *arguments)
    assert done.code == 2
    assert "the run in runs/micro came to step 6, and there is no checkpoint in runs/micro/checkpoints: " in done.err
    (run / "report.md").unlink()  # not finished, and far enough to have had one, or not yet
    before.pop(run / "report.md")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("every: 4", "every: 2"))
    before[recipe] = recipe.read_bytes()
    assert _fit(cli, micro_recipe, *arguments).code == 2
    assert _content(run) == before
    Path("kept").rename(run / "checkpoints")
    assert "going on from step 6" in _fit(cli, micro_recipe, "--resume", "auto").err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(cli, micro_recipe, run):
    (run / "report.md").unlink()
    shutil.rmtree(run / "checkpoints")
    done = _fit(cli, micro_recipe, "--resume", "auto")
    assert done.code == 0, done.err


def _lose_checkpoints(run):
    (run / "report.md").unlink()
    shutil.rmtree(run / "checkpoints")


def test_a_run_that_has_gone_on_once_had_a_checkpoint_however_far_it_came(cli, micro_recipe, run):
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=7").code == 0
    _lose_checkpoints(run)
    for resume in ("auto", "never"):
        done = cli("fit", "--recipe", micro_recipe, "--resume", resume, "training.steps=7")
        assert done.code == 2
        assert "the run in runs/micro came to step 7, and there is no checkpoint" in done.err


def test_a_start_that_is_killed_at_once_is_not_taken_to_have_come_far(cli, micro_recipe, run, monkeypatch):
    _lose_checkpoints(run)
    arguments = ["--resume", "auto", "checkpoint.every=1"]
    with monkeypatch.context() as patched:
        patched.setattr("dla_train.training.fit.record_start", lambda *_, **__: 1 // 0)
        assert _fit(cli, micro_recipe, *arguments).code == 1
    done = _fit(cli, micro_recipe, *arguments)
    assert done.code == 0, done.err


def test_a_run_that_branches_off_twice_has_come_as_far_as_the_last_time(cli, micro_recipe, run):
    """The first time it was killed before it had a checkpoint of its own."""
    branch = ["--run-dir", "branch", "checkpoint.every=1"]
    assert _fit(cli, micro_recipe, *branch, "--resume", run / "checkpoints/step-00000004").code == 0
    _lose_checkpoints(Path("branch"))
    environment = Path("branch/environment.json")
    (start,) = json.loads(environment.read_text())["starts"]
    assert (start["first_step"], start["goes_on"]) == (4, False)
    environment.write_text(json.dumps({"starts": [{**start, "first_step": 0}, start]}))
    done = _fit(cli, micro_recipe, *branch, "--resume", f"auto:{run / 'checkpoints/step-00000004'}")
    assert done.code == 0, done.err
    with open("branch/metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "5", "6", "6"]


def test_a_place_for_checkpoints_that_is_none_is_named(cli, micro_recipe):
    Path("runs/micro").mkdir(parents=True)
    Path("runs/micro/.lock").touch()
    Path("runs/micro/checkpoints").symlink_to("/nowhere/checkpoints")
    done = _fit(cli, micro_recipe)
    assert done.code == 1
    assert "cannot make runs/micro/checkpoints for the checkpoints: File exists. If it is a link" in done.err


def test_a_path_without_checkpoint_is_refused(cli, micro_recipe, run):
    done = _fit(cli, micro_recipe, "--run-dir", "other", "--resume", "nowhere")
    assert done.code == 2
    assert "there is no checkpoint at nowhere." in done.err
    assert not Path("other").exists()


def test_other_text_under_the_same_name_is_refused(cli, micro_recipe, run, tmp_path, text_corpus):
    other = tmp_path / "other.txt"
    other.write_text(text_corpus.read_text() + "\nomega alpha token state\n" * 3)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=8", f"data.path={other}", "--resume", "auto")
    assert done.code == 2
    assert "changed since runs/micro/checkpoints/step-00000006 was written" in done.err
    assert "the text is another one" in done.err


def test_the_text_that_is_compared_is_the_training_text(micro_recipe):
    data = open_data(load(find(str(micro_recipe))))
    assert isinstance(data, WindowsDataModule)
    trained, validated = (
        hashlib.sha256((part.path / "tokens.bin").read_bytes()).hexdigest()
        for part in (data.corpus.train, data.corpus.validation)
    )
    assert data.fingerprints["training text"] == trained != validated


def test_a_branch_may_read_other_text_if_a_setting_says_so(cli, micro_recipe, run, tmp_path, text_corpus):
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
    original = text_corpus.read_text()
    try:
        text_corpus.write_text(other.read_text())
        done = cli(*branch, "--run-dir", "edited")
    finally:
        text_corpus.write_text(original)
    assert done.code == 2
    assert "the text is another one" in done.err


def test_the_recipe_can_come_from_the_run_folder(cli, run):
    done = cli("fit", "--run-dir", run, "--resume", "auto", "training.steps=7")
    assert done.code == 0, done.err
    assert "going on from step 6" in done.err
    assert (run / "checkpoints" / "step-00000007").is_dir()


@pytest.mark.parametrize("spoil", [lambda text: b"", lambda text: text[:300], lambda text: b"\xff" + text])
def test_a_spoiled_recipe_of_a_run_is_named_and_the_run_goes_on_without_it(cli, micro_recipe, run, spoil):
    recipe = run / "recipe.yaml"
    whole = recipe.read_bytes()
    recipe.write_bytes(spoil(whole))
    before = _content(run)
    for command in (
        ["fit", "--recipe", micro_recipe, "training.steps=6"],
        ["fit", "--run-dir", run, "--resume", "auto"],
        ["generate", "--checkpoint", run, "--prompt", "alpha"],
    ):
        done = cli(*command)
        assert done.code == 2
        assert "Nothing else of the run is lost. Move runs/micro/recipe.yaml away and give the recipe again" in done.err
    assert _content(run) == before
    recipe.unlink()
    refused = _fit(cli, micro_recipe, "--resume", "auto", "optimizer.lr=1")
    assert "is a checkpoint of another recipe: optimizer.lr 0.01 there and 1.0 here" in refused.err
    assert _fit(cli, micro_recipe, "--resume", "auto").code == 0
    assert recipe.read_bytes() == whole


def test_a_run_in_the_current_folder_has_its_name(cli, run, monkeypatch):
    monkeypatch.chdir(run)
    done = cli("fit", "--run-dir", ".", "--resume", "auto", "training.steps=7")
    assert done.code == 0, done.err
    assert done.out.startswith("\n# micro\n")


def test_a_folder_without_a_checkpoint_may_be_deleted(cli, micro_recipe):
    done = _fit(cli, micro_recipe, "optimizer.lr=1e30", "training.max_nonfinite=0", "schedule.warmup=0")
    assert done.code == 1
    assert not list(Path("runs/micro/checkpoints").glob("*"))
    done = _fit(cli, micro_recipe)
    assert done.code == 2
    assert "Choose another folder with --run-dir DIR or use the recipe of that run." in done.err
    assert "It has no checkpoint: if nobody needs its log, delete runs/micro." in done.err


def test_a_disk_without_room_for_one_checkpoint_is_noticed_before_training(cli, micro_recipe, monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    done = _fit(cli, micro_recipe)
    assert done.code == 1
    assert "are free. There is no checkpoint yet. Make room there, or choose another folder with --run" in done.err
    assert "step 1/6" not in done.err
