"""`training.compile`: the same losses, the memories seen as before, and a compiled run may go on without it."""

import pytest

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
