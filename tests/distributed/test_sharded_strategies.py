"""DeepSpeed's engine and FSDP on the CPU, through the command line: the training of one process, checkpoints that any
number of processes goes on from, and exports."""

import json

import pytest
from safetensors.torch import load_file

from tests.distributed.conftest import numbers

pytestmark = pytest.mark.xdist_group("sharded strategies")

ZERO_1, ZERO_2, ZERO_3 = (f"strategy={{kind: deepspeed, stage: {stage}}}" for stage in (1, 2, 3))
FSDP, DDP = "strategy=fsdp", "strategy=ddp"
SHARDED = {"zero-1": ZERO_1, "zero-2": ZERO_2, "zero-3": ZERO_3, "fsdp": FSDP}


def require_equal(folder, expected, rel=1e-5):
    """Sums in another order: float32 has 1e-7 per operation, of which a step makes many."""
    for split, name in (("train", "loss"), ("train", "grad_norm"), ("validation", "loss")):
        assert numbers(folder, split, name) == pytest.approx(numbers(expected, split, name), rel=rel), (split, name)


@pytest.mark.parametrize(
    "strategy",
    [ZERO_3, FSDP, pytest.param(ZERO_1, marks=pytest.mark.slow), pytest.param(ZERO_2, marks=pytest.mark.slow)],
    ids=["zero-3", "fsdp", "zero-1", "zero-2"],
)
def test_two_ranks_train_what_one_does_and_one_goes_on_with_their_run_and_exports_it(
    cli, fit_on, fit_arguments, at_step_4, tmp_path, strategy
):
    assert cli(*fit_arguments("one")).code == 0
    # With accumulation, two micro-batches on each rank, and clipping in every step.
    said = fit_on(2, "two", strategy, "checkpoint.keep_every=4", "checkpoint.every=2", "checkpoint.keep_last=1")
    require_equal(tmp_path / "two", tmp_path / "one")
    assert min(numbers(tmp_path / "two", name="grad_norm").values()) > 0.5
    assert " on 2 processes" in said
    assert "Warning" not in said, said

    kept = sorted(path.name for path in (tmp_path / "two/checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000008"], "keep_every and keep_last"
    files = json.loads((tmp_path / "two/checkpoints/step-00000008/manifest.json").read_text())["files"]
    assert sorted(files) == ["shard-00000-of-00002.ckpt", "shard-00001-of-00002.ckpt", "state.ckpt"]

    done = cli("export", "--checkpoint", "two", "--to", "exported")
    assert done.code == 0, done.err
    assert cli("export", "--checkpoint", "one", "--to", "expected").code == 0
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("exported", "expected"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].numpy() == pytest.approx(weight.numpy(), rel=1e-3, abs=1e-5), name

    at_step_4("two", "alone")
    done = cli(*fit_arguments("alone", "--resume", "auto"))
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
    require_equal(tmp_path / "alone", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED.values(), ids=SHARDED)
def test_as_many_ranks_go_on_to_the_last_bit(fit_on, at_step_4, tmp_path, strategy):
    fit_on(2, "straight", strategy)
    at_step_4("straight", "resumed")
    assert "going on from step 4" in fit_on(2, "resumed", strategy, "--resume", "auto")
    require_equal(tmp_path / "resumed", tmp_path / "straight", rel=0)


@pytest.mark.slow
@pytest.mark.parametrize("after", [*SHARDED.values(), DDP], ids=[*SHARDED, "ddp"])
@pytest.mark.parametrize("before", [*SHARDED.values(), DDP], ids=[*SHARDED, "ddp"])
def test_any_strategy_goes_on_with_the_run_of_any_other_on_another_number_of_ranks(
    fit_on, at_step_4, tmp_path, before, after
):
    few, many = (1, 4) if before == after else (2, 4)
    fit_on(1, "one")
    fit_on(few, "few", before)
    at_step_4("few", "resumed")
    assert "going on from step 4" in fit_on(many, "resumed", after, "--resume", "auto")
    require_equal(tmp_path / "resumed", tmp_path / "one")


VARIANTS = {
    "tied embeddings": ["model.tie_embeddings=true"],
    "recomputed blocks": ["training.activation_checkpointing=full"],
    "calibrated thresholds": ["model.mixer.memory.calibrate_rate=0.3"],
    "learned thresholds": ["model.mixer.memory.gate=straight_through", "model.mixer.memory.learn_threshold=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ZERO_2, ZERO_3, FSDP], ids=["zero-2", "zero-3", "fsdp"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_whatever_one_process_trains(fit_on, at_step_4, tmp_path, strategy, settings):
    fit_on(1, "one", *settings)
    fit_on(2, "two", strategy, *settings)
    require_equal(tmp_path / "two", tmp_path / "one")
    at_step_4("two", "alone")
    fit_on(1, "alone", *settings, "--resume", "auto")
    require_equal(tmp_path / "alone", tmp_path / "one")
