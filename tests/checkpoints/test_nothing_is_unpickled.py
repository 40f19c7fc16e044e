"""A checkpoint is data: whatever its file says, no code in it runs."""

import os
from pathlib import Path

import pytest
import torch

from dla_train.checkpoints.manifest import RunIdentity
from dla_train.checkpoints.state_file import StateFileIO
from dla_train.checkpoints.store import CheckpointStore
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.config.typed import plain
from dla_train.errors import RunError


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_the_file_does_what_it_says(tmp_path):
    """The attack works on a reader that unpickles: without this, the tests below would prove nothing."""
    torch.save({"global_step": 4, "trap": Malicious(tmp_path / "mark")}, tmp_path / "state.ckpt")
    torch.load(tmp_path / "state.ckpt", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("weights_only", [True, False, None])
def test_the_reader_refuses_whatever_its_caller_wants(tmp_path, weights_only):
    torch.save({"global_step": 4, "trap": Malicious(tmp_path / "mark")}, tmp_path / "state.ckpt")
    with pytest.raises(RunError, match="holds more than tensors and plain values"):
        StateFileIO().load_checkpoint(tmp_path / "state.ckpt", weights_only=weights_only)
    assert not (tmp_path / "mark").exists()


def test_resume_runs_no_code_from_a_checkpoint_with_a_sound_manifest(cli, micro_recipe, tmp_path):
    assert cli("fit", "--recipe", micro_recipe, "training.steps=4").code == 0
    folder = tmp_path / "runs" / "micro"
    genuine = CheckpointStore(folder / "checkpoints").all()[0].verify().identity
    identity = RunIdentity(recipe=plain(load(find(str(micro_recipe))).recipe), data=genuine.data)
    with CheckpointStore(folder / "checkpoints").new(8, identity) as checkpoint:
        state = torch.load(folder / "checkpoints" / "step-00000004" / "state.ckpt", weights_only=True)
        torch.save({**state, "global_step": 8, "trap": Malicious(tmp_path / "mark")}, checkpoint / "state.ckpt")

    done = cli("fit", "--recipe", micro_recipe, "--resume", "auto")
    assert done.code == 1
    assert "step-00000008/state.ckpt holds more than tensors and plain values" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "mark").exists()
