"""A checkpoint whose weights are no numbers is sound as a file, and no model."""

import json

import pytest
import torch

from dla_train import load_model
from dla_train.checkpoints.manifest import checksum, describe_files
from dla_train.errors import RunError


def spoil(folder, value):
    """Put `value` into one weight of a checkpoint, as a run that diverged would have written it."""
    path = folder / "state.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["model.norm.weight"][3] = value
    torch.save(state, path)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.unlink()
    head = {name: content.pop(name) for name in ("format", "version", "checksum")}
    content["files"] = describe_files(folder)
    manifest.write_text(json.dumps({**head, "checksum": checksum(content), **content}))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_no_command_asks_weights_that_are_no_numbers(cli, micro_recipe, tmp_path, value):
    how = ["training.steps=4", "training.validate_every=null", "checkpoint.every=2"]
    assert cli("fit", "--recipe", micro_recipe, "--run-dir", "run", *how).code == 0
    (tmp_path / "story.txt").write_text("alpha beta gamma")
    spoil(tmp_path / "run/checkpoints/step-00000004", value)
    for command in (
        ["export", "--to", "model"],
        ["generate", "--prompt", "alpha"],
        ["eval", "--tasks", "perplexity-by-position"],
        ["inspect", "--text", "story.txt", "--out", "seen"],
    ):
        done = cli(*command, "--checkpoint", "run")
        assert (done.code, done.out) == (1, ""), command
        assert "step-00000004 hold nan or inf (norm.weight, of " in done.err
        assert "Give an earlier one of run: step 2." in done.err
    assert not (tmp_path / "model").exists()
    assert cli("export", "--to", "model", "--checkpoint", "run/checkpoints/step-00000002").code == 0
    with pytest.raises(RunError, match="hold nan or inf"):
        load_model("run")
