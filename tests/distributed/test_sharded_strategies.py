"""DeepSpeed's engine and FSDP on the CPU, through the command line: the training of one process, checkpoints that any
number of processes goes on from, and exports."""

import json
import signal

import pytest
from safetensors.torch import load_file

from tests.distributed.conftest import numbers, require_equal

ZERO_1, ZERO_2, ZERO_3 = (f"strategy={{kind: deepspeed, stage: {stage}}}" for stage in (1, 2, 3))
FSDP, DDP = "strategy=fsdp", "strategy=ddp"
SHARDED = {"zero-1": ZERO_1, "zero-2": ZERO_2, "zero-3": ZERO_3, "fsdp": FSDP}


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


KILLED_WHILE_WRITING = """
import os, signal
from dla_train.distributed import sharded_state
write = sharded_state.write_shards
def write_or_die(checkpoint, path, rank, world_size):
    if rank == 1 and "00000008" in str(path): os.kill(os.getpid(), signal.SIGKILL)
    write(checkpoint, path, rank, world_size)
sharded_state.write_shards = write_or_die
"""
DISK_OF_20_MB = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1, 1, 20 * 2**20)"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ZERO_2, FSDP], ids=["zero-2", "fsdp"])
def test_a_checkpoint_that_lacks_a_rank_never_appears(fit_on, forked_ranks, fit_arguments, tmp_path, strategy):
    fit_on(2, "straight", strategy)
    codes, _ = forked_ranks(2, fit_arguments("killed", strategy), KILLED_WHILE_WRITING)
    assert codes[0] != 0
    assert codes[1] == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "killed/checkpoints").iterdir()}
    assert "step-00000008" not in left
    assert "going on from step 4" in fit_on(2, "killed", strategy, "--resume", "auto")
    require_equal(tmp_path / "killed", tmp_path / "straight", rel=0)
    assert {path.name for path in (tmp_path / "killed/checkpoints").iterdir()} == {"step-00000004", "step-00000008"}


@pytest.mark.slow
def test_room_for_all_shards_is_asked_for_before_the_first_is_written(fit_on, forked_ranks, fit_arguments, tmp_path):
    fit_on(1, "one", "model.hidden=64")
    fit_on(2, "two", ZERO_3, "model.hidden=64")
    size = {
        name: sum(path.stat().st_size for path in (tmp_path / name / "checkpoints/step-00000008").glob("*.ckpt"))
        for name in ("one", "two")
    }
    assert size["two"] == pytest.approx(size["one"], rel=0.1), "no tensor is written twice"

    codes, err = forked_ranks(2, fit_arguments("full", ZERO_3, "model.hidden=640"), DISK_OF_20_MB)
    assert codes == [1, 1], err
    assert "a checkpoint of 85 MB, with room for metrics and logs beside it, needs " in err
    assert "MB in full/checkpoints, where 21 MB are free. There is no checkpoint yet." in err
    assert not list((tmp_path / "full/checkpoints").iterdir())


VARIANTS = {
    "tied embeddings": ["model.tie_embeddings=true"],
    "recomputed blocks": ["training.activation_checkpointing=full"],
    "blocks recomputed but for their products": ["training.activation_checkpointing=selective"],
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


@pytest.mark.slow
def test_muon_steps_by_whole_matrices_under_fsdp(fit_on, at_step_4, tmp_path):
    muon = "optimizer={kind: muon, lr: 1e-2}"
    fit_on(1, "one", muon)
    fit_on(2, "two", FSDP, muon)
    require_equal(tmp_path / "two", tmp_path / "one")
    at_step_4("two", "alone")
    fit_on(1, "alone", muon, "--resume", "auto")
    require_equal(tmp_path / "alone", tmp_path / "one")


def test_fsdp_that_keeps_weights_gathered_saves_after_a_validation(fit_on, tmp_path):
    kept = "strategy={kind: fsdp, reshard_after_forward: false}"
    fit_on(2, "two", kept, "training.validate_every=2", "checkpoint.every=2", "checkpoint.keep_last=9")
    fit_on(1, "one", "training.validate_every=2", "checkpoint.every=2", "checkpoint.keep_last=9")
    require_equal(tmp_path / "two", tmp_path / "one")


ANSWERS = "data={kind: synthetic, task: {kind: mqar, pairs: [2]}, vocab_size: 32, window: 24}"


def test_fsdp_saves_after_a_validation_of_answers(fit_on, tmp_path):
    """Whose forward no backward follows, which left the weights of embedding and head gathered."""
    fit_on(2, "two", FSDP, ANSWERS, "training.validate_every=2", "checkpoint.every=1", "checkpoint.keep_last=9")
    assert (tmp_path / "two/checkpoints/step-00000008").is_dir()


def test_the_norm_of_sharded_bfloat16_gradients_is_that_of_one_process(cli, fit_on, fit_arguments, tmp_path):
    settings = ("training.precision=bf16-true", "training.steps=3")
    assert cli(*fit_arguments("one", *settings)).code == 0
    fit_on(2, "two", FSDP, *settings)
    found, expected = (numbers(tmp_path / name, name="grad_norm") for name in ("two", "one"))
    assert found == pytest.approx(expected, rel=2e-2), "other micro-batches are added up in bfloat16"
