"""`training.compile`: the same losses, the memories seen as before, and a compiled run may go on without it."""

import pytest
import torch

from dla_train.runs.metrics_file import TIMES, read_rows

STEPS = ("training.steps=4", "training.validate_every=2", "checkpoint.every=2")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_is_the_same_experiment(cli, micro_recipe, tmp_path):
    rows = {}
    for is_compiled in (False, True):
        folder = tmp_path / str(is_compiled)
        done = cli(
            "fit", "--recipe", micro_recipe, "--run-dir", folder, f"training.compile={is_compiled}".lower(), *STEPS
        )
        assert done.code == 0, done.err
        rows[is_compiled] = read_rows(folder / "metrics.csv")
    for plain, compiled in zip(rows[False], rows[True], strict=True):
        for name in plain.keys() - {"split", *TIMES}:
            assert compiled[name] == pytest.approx(plain[name], rel=1e-2 if "." in name else 1e-4), name

    done = cli("fit", "--run-dir", tmp_path / "True", "--resume", "auto", "training.compile=false", "training.steps=6")
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_that_was_stopped_is_bitwise_the_one_that_was_not(cli, micro_recipe, tmp_path):
    one_graph = ("model.layers=1", "training.validate_every=null", "report.prompt=null", "training.threads=1")
    arguments = ["fit", "--recipe", micro_recipe, "training.compile=true", "training.steps=4", *one_graph]
    assert cli(*arguments, "--run-dir", "straight").code == 0
    assert cli(*arguments, "--run-dir", "pieces", "training.max_minutes=1e-9").code == 0  # one step, then a checkpoint
    torch.compiler.reset()  # as in a process of its own: nothing is compiled yet
    done = cli(*arguments, "--run-dir", "pieces", "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on from step 1" in done.err
    straight, pieces = (
        [{name: row[name] for name in row.keys() - TIMES} for row in read_rows(tmp_path / name / "metrics.csv")]
        for name in ("straight", "pieces")
    )
    assert [row for row in pieces if row["split"] == "train"] == [row for row in straight if row["split"] == "train"]
