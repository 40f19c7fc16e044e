"""Whether a run goes on, and what may be different then."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from dla_train.checkpoints.resume import forbidden_changes
from tests.checkpoints.conftest import content, fit_shortly


def test_a_new_run_does_not_write_into_an_old_one(cli, micro_recipe, run):
    before = content(run)
    done = fit_shortly(cli, micro_recipe)
    assert done.code == 2
    assert "runs/micro already holds this run, finished at step 6: --resume auto shows its report again." in done.err
    assert "--run-dir DIR" in done.err
    assert content(run) == before


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
    before = content(run)
    done = fit_shortly(cli, micro_recipe, setting, "--resume", resume)
    assert done.code == 2
    assert "the run folder runs/micro holds a run of another recipe: " in done.err
    assert named in done.err
    assert content(run) == before


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
    before = content(run)
    done = fit_shortly(cli, micro_recipe, "--resume", "auto")
    assert done.code == 0
    assert done.out.strip() == (run / "report.md").read_text().strip()
    for name in ("metrics.csv", "report.md", "report.json", "recipe.yaml"):
        assert before[run / name] == (run / name).read_bytes()


def test_a_finished_run_that_has_lost_its_metrics_says_why_there_is_no_report(cli, micro_recipe, run):
    for name in ("report.md", "metrics.csv"):
        (run / name).unlink()
    done = fit_shortly(cli, micro_recipe, "--resume", "auto")
    assert done.code == 1
    assert "dla-train: error: there is no report to write: runs/micro/metrics.csv has no step of this run" in done.err
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=7").code == 0


def test_other_settings_of_the_report_write_it_anew(cli, micro_recipe, run):
    before = content(run)
    settings = ["report.bigram=false", "report.prompt=gamma", "report.temperature=0"]
    assert fit_shortly(cli, micro_recipe, *settings, "--run-dir", "straight").code == 0
    done = fit_shortly(cli, micro_recipe, *settings, "--resume", "auto")
    assert done.code == 0, done.err
    assert done.out.strip() == (run / "report.md").read_text().strip()
    assert "bigram" not in done.out
    assert "gamma▸" in done.out
    found, expected = (json.loads((folder / "report.json").read_text()) for folder in (run, Path("straight")))
    times = dict.fromkeys(("seconds", "tokens_per_second"))
    assert {**found, **times} == {**expected, **times}, "of the trained weights, too"
    assert (run / "metrics.csv").read_bytes() == before[run / "metrics.csv"]
    again = fit_shortly(cli, micro_recipe, *settings, "--resume", "auto")
    assert again.out == done.out
    back = fit_shortly(cli, micro_recipe, "--resume", "auto")
    assert back.out.encode().strip() == before[run / "report.md"].strip()


def test_a_kill_before_the_new_report_leaves_no_old_one(cli, micro_recipe, run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("dla_train.training.fit.write_report", lambda *arguments: 1 // 0)
        assert fit_shortly(cli, micro_recipe, "--resume", "auto", "report.prompt=gamma").code == 1
    done = fit_shortly(cli, micro_recipe, "--resume", "auto", "report.prompt=gamma")
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
    before = content(run)
    settings = ["report.bigram=false", "training.validation_windows=null"]
    done = fit_shortly(cli, micro_recipe, "--resume", "auto", *settings)
    assert done.code == 2
    assert (
        "on the command line: training.validation_windows: it is null, but this run is finished, and was 4 when it was "
        "validated last. Leave it at 4, or set more training.steps." in done.err
    )
    assert content(run) == before
    done = cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=7", *settings)
    assert done.code == 0, done.err


def test_the_report_of_a_shorter_run_does_not_outlive_it(cli, micro_recipe, run):
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto", "training.steps=8").code == 0
    for name in ("report.md", "checkpoints/step-00000008/manifest.json"):
        (run / name).unlink()
    done = fit_shortly(cli, micro_recipe, "--resume", "auto")
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
    done = fit_shortly(
        cli, micro_recipe, "--run-dir", "other", "--resume", run / "checkpoints/step-00000004", "model.hidden=32"
    )
    assert done.code == 2
    assert "step-00000004 is a checkpoint of another architecture: model.hidden 16 there and 32 here." in done.err
    assert not Path("other").exists()


def test_a_checkpoint_of_another_optimizer_is_refused(cli, micro_recipe, run):
    path = run / "checkpoints/step-00000004"
    done = fit_shortly(cli, micro_recipe, "--run-dir", "other", "--resume", path, "optimizer={kind: muon, lr: 0.01}")
    assert done.code == 2
    assert "step-00000004 is a checkpoint of another optimizer: optimizer.kind adamw there and muon here." in done.err
    assert not Path("other").exists()


@pytest.mark.parametrize("resume", ["auto", "never", "auto:elsewhere"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(cli, micro_recipe, run, resume):
    """They may be where a clean-up or another mount has left them, and the record of the run is not written over."""
    shutil.copytree(run, "elsewhere")
    (run / "checkpoints").rename("kept")
    before = content(run)
    arguments = ["--resume", resume, "checkpoint.every=2"]
    done = fit_shortly(cli, micro_recipe, *arguments)
    assert done.code == 2
    assert "the run in runs/micro came to step 6, and there is no checkpoint in runs/micro/checkpoints: " in done.err
    (run / "report.md").unlink()  # not finished, and far enough to have had one, or not yet
    before.pop(run / "report.md")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("every: 4", "every: 2"))
    before[recipe] = recipe.read_bytes()
    assert fit_shortly(cli, micro_recipe, *arguments).code == 2
    assert content(run) == before
    Path("kept").rename(run / "checkpoints")
    assert "going on from step 6" in fit_shortly(cli, micro_recipe, "--resume", "auto").err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(cli, micro_recipe, run):
    (run / "report.md").unlink()
    shutil.rmtree(run / "checkpoints")
    done = fit_shortly(cli, micro_recipe, "--resume", "auto")
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
        assert fit_shortly(cli, micro_recipe, *arguments).code == 1
    done = fit_shortly(cli, micro_recipe, *arguments)
    assert done.code == 0, done.err


def test_a_run_that_branches_off_twice_has_come_as_far_as_the_last_time(cli, micro_recipe, run):
    """The first time it was killed before it had a checkpoint of its own."""
    branch = ["--run-dir", "branch", "checkpoint.every=1"]
    assert fit_shortly(cli, micro_recipe, *branch, "--resume", run / "checkpoints/step-00000004").code == 0
    _lose_checkpoints(Path("branch"))
    environment = Path("branch/environment.json")
    (start,) = json.loads(environment.read_text())["starts"]
    assert (start["first_step"], start["goes_on"]) == (4, False)
    environment.write_text(json.dumps({"starts": [{**start, "first_step": 0}, start]}))
    done = fit_shortly(cli, micro_recipe, *branch, "--resume", f"auto:{run / 'checkpoints/step-00000004'}")
    assert done.code == 0, done.err
    with open("branch/metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "5", "6", "6"]


def test_a_place_for_checkpoints_that_is_none_is_named(cli, micro_recipe):
    Path("runs/micro").mkdir(parents=True)
    Path("runs/micro/.lock").touch()
    Path("runs/micro/checkpoints").symlink_to("/nowhere/checkpoints")
    done = fit_shortly(cli, micro_recipe)
    assert done.code == 1
    assert "cannot make runs/micro/checkpoints for the checkpoints: File exists. If it is a link" in done.err


def test_a_path_without_checkpoint_is_refused(cli, micro_recipe, run):
    done = fit_shortly(cli, micro_recipe, "--run-dir", "other", "--resume", "nowhere")
    assert done.code == 2
    assert "there is no checkpoint at nowhere." in done.err
    assert not Path("other").exists()


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
    before = content(run)
    for command in (
        ["fit", "--recipe", micro_recipe, "training.steps=6"],
        ["fit", "--run-dir", run, "--resume", "auto"],
        ["generate", "--checkpoint", run, "--prompt", "alpha"],
    ):
        done = cli(*command)
        assert done.code == 2
        assert "Nothing else of the run is lost. Move runs/micro/recipe.yaml away and give the recipe again" in done.err
    assert content(run) == before
    recipe.unlink()
    refused = fit_shortly(cli, micro_recipe, "--resume", "auto", "optimizer.lr=1")
    assert "is a checkpoint of another recipe: optimizer.lr 0.01 there and 1.0 here" in refused.err
    assert fit_shortly(cli, micro_recipe, "--resume", "auto").code == 0
    assert recipe.read_bytes() == whole


def test_a_run_in_the_current_folder_has_its_name(cli, run, monkeypatch):
    monkeypatch.chdir(run)
    done = cli("fit", "--run-dir", ".", "--resume", "auto", "training.steps=7")
    assert done.code == 0, done.err
    assert done.out.startswith("\n# micro\n")


def test_a_folder_without_a_checkpoint_may_be_deleted(cli, micro_recipe):
    done = fit_shortly(cli, micro_recipe, "optimizer.lr=1e30", "training.max_nonfinite=0", "schedule.warmup=0")
    assert done.code == 1
    assert not list(Path("runs/micro/checkpoints").glob("*"))
    done = fit_shortly(cli, micro_recipe)
    assert done.code == 2
    assert "Choose another folder with --run-dir DIR or use the recipe of that run." in done.err
    assert "It has no checkpoint: if nobody needs its log, delete runs/micro." in done.err


def test_a_disk_without_room_for_one_checkpoint_is_noticed_before_training(cli, micro_recipe, monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    done = fit_shortly(cli, micro_recipe)
    assert done.code == 1
    assert "are free. There is no checkpoint yet. Make room there, or choose another folder with --run" in done.err
    assert "step 1/6" not in done.err
