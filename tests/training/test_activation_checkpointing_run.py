"""`training.activation_checkpointing` in a run: the same losses to the last bit, and a change of it may resume."""

import pytest

from dla_train.training.config import TrainingConfig
from tests.training.exact_rows import exact_rows


def test_losses_and_memories_are_those_without_it(cli, micro_recipe, tmp_path):
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1", "training.steps=6", "logging.memory_every=1"]
    assert cli(*arguments, "--run-dir", "kept").code == 0
    for value in ("selective", "full", "every 2"):
        done = cli(*arguments, "--run-dir", value, f"training.activation_checkpointing={value}")
        assert done.code == 0, done.err
        assert exact_rows(tmp_path / value) == exact_rows(tmp_path / "kept")


def test_it_may_change_between_starts(cli, micro_recipe):
    arguments = ["fit", "--recipe", micro_recipe, "--run-dir", "run"]
    assert cli(*arguments, "training.max_minutes=1e-9").code == 0
    assert cli(*arguments, "training.activation_checkpointing=full", "--resume", "auto").code == 0


@pytest.mark.parametrize("value", ["all", "every", "every 0", "every two", ""])
def test_what_cannot_be_read_is_refused(value):
    with pytest.raises(
        ValueError, match=r"activation_checkpointing is .*; it must be none, selective, full, or every N"
    ):
        TrainingConfig(steps=1, global_batch=1, micro_batch=1, activation_checkpointing=value)


def test_compiled_blocks_do_not_show_their_products():
    with pytest.raises(ValueError, match=r"'selective', .* with training.compile=true it must be none, full, or every"):
        TrainingConfig(steps=1, global_batch=1, micro_batch=1, activation_checkpointing="selective", compile=True)
