"""A checkpoint that another version wrote: what may be missing is made up for, what may not is named."""

import json
from importlib import metadata

import pytest
import torch

from dla_train.checkpoints.manifest import checksum, describe_files
from dla_train.config.recipe import Recipe


def without(folder, key, version):
    """Take `key` out of a checkpoint, as if a version that did not know it had written it."""
    path = folder / "state.ckpt"
    state = torch.load(path, weights_only=True)
    del state[key]
    torch.save(state, path)
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    content = json.loads((folder.parent / "manifest.json").read_text())
    head = {name: content.pop(name) for name in ("format", "version", "checksum")}
    content["files"] = describe_files(folder)
    content["packages"]["dla-train"] = version
    (folder / "manifest.json").write_text(json.dumps({**head, "checksum": checksum(content), **content}))
    (folder.parent / "manifest.json").unlink()


@pytest.fixture
def run(cli, micro_recipe, tmp_path):
    """A run of four steps; returns its folder."""
    assert cli("fit", "--recipe", micro_recipe, "training.steps=4").code == 0
    return tmp_path / "runs/micro"


@pytest.mark.parametrize("key", ["skipped_steps", "gradient_norms"])
def test_what_an_older_version_did_not_count_begins_at_nothing(cli, micro_recipe, run, key):
    without(run / "checkpoints/step-00000004", key, "0.0.1")
    done = cli("fit", "--recipe", micro_recipe, "training.steps=6", "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err


def test_what_nothing_can_go_on_without_is_named_with_both_versions(cli, micro_recipe, run):
    without(run / "checkpoints/step-00000004", "optimizer_states", "0.0.1")
    done = cli("fit", "--recipe", micro_recipe, "training.steps=6", "--resume", "auto")
    assert done.code == 1
    here = metadata.version("dla-train")
    assert f"state.ckpt lacks 'optimizer_states': dla-train 0.0.1 wrote it, and this is {here}." in done.err
    assert "Go on with the version that wrote it, or from another checkpoint with --resume PATH." in done.err


def test_a_schedule_that_is_refused_today_ends_no_run_that_was_begun_with_it(cli, micro_recipe, tmp_path, monkeypatch):
    """It goes on, can be looked at and taken elsewhere; nothing new begins so."""
    recipe = tmp_path / "micro.yaml"
    recipe.write_text(micro_recipe.read_text().replace("{kind: cosine, ", "{kind: wsd, decay: 30, "))
    with monkeypatch.context() as before:
        before.setattr(Recipe, "require_new", lambda self: None)
        assert cli("fit", "--recipe", recipe, "training.steps=4").code == 0
    for command in (
        ("fit", "--recipe", recipe, "--resume", "auto", "training.steps=6"),
        ("fit", "--run-dir", "runs/micro", "--resume", "auto", "training.steps=8"),
        ("export", "--checkpoint", "runs/micro", "--to", "exported"),
        ("generate", "--checkpoint", "runs/micro", "--prompt", "alpha", "--max-tokens", "2"),
    ):
        done = cli(*command)
        assert done.code == 0, done.err
    for command in (
        ("fit", "--recipe", recipe, "--run-dir", "runs/other"),
        ("fit", "--recipe", recipe, "--run-dir", "runs/other", "--resume", "runs/micro"),
        ("estimate", "--recipe", recipe),
    ):
        done = cli(*command)
        assert done.code == 2
        assert "schedule.decay is 30, but training.steps 20 leave only 17 behind the warm-up" in done.err
