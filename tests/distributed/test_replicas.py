"""FSDP with several replicas of the model, each sharded among some of the ranks: the training of one process, and
checkpoints that hold everything once."""

import json

import pytest
import torch

from dla_train.runs.metrics_file import read_rows
from tests.distributed.conftest import ON_TWO_NODES, numbers, require_equal

TWO, FOUR, NODES = (f"strategy={{kind: fsdp, replicas: {replicas}}}" for replicas in (2, 4, "nodes"))
MICRO_BATCHES = "training.global_batch=8"
"""Two for each of four ranks in every step."""

COUNTED = """
import atexit, json
from torch import distributed
all_reduce, groups = distributed.all_reduce, []
def counted(tensor, *arguments, group=None, **named):
    if len(ranks := distributed.get_process_group_ranks(group)) < 4: groups.append(ranks)
    return all_reduce(tensor, *arguments, group=group, **named)
distributed.all_reduce = counted
atexit.register(lambda: open(f"reduced-{rank}.json", "w").write(json.dumps(groups)))
"""
"""Notes the ranks of each average that not all take part in."""


def parts_on_disk(checkpoint):
    """By name, the `(start, number)` of all parts of a tensor, from all ranks' files."""
    found = {}
    for path in sorted(checkpoint.glob("shard-*.ckpt")):
        for name, (start, values) in torch.load(path, weights_only=True).items():
            found.setdefault(name, []).append((start, len(values)))
    return found


def test_two_replicas_on_four_ranks_train_what_one_process_does_and_go_on_to_the_last_bit(
    cli, fit_on, fit_arguments, at_step_4, tmp_path
):
    assert cli(*fit_arguments("one", MICRO_BATCHES)).code == 0
    said = fit_on(4, "four", TWO, MICRO_BATCHES, before=COUNTED)
    require_equal(tmp_path / "four", tmp_path / "one")
    assert min(numbers(tmp_path / "four", name="grad_norm").values()) > 0.5, "every step was clipped"
    assert "fsdp on 4 processes (4 per node, started by dla-train), 2 replicas of 2 processes each" in said
    assert "Warning" not in said, said
    for rank, others in enumerate(([0, 2], [1, 3], [0, 2], [1, 3])):
        # Three units (two blocks, and embedding with last norm and head) in eight steps: after the last micro-batch.
        assert json.loads((tmp_path / f"reduced-{rank}.json").read_text()) == [others] * 3 * 8

    at_step_4("four", "resumed")
    said = fit_on(4, "resumed", NODES, MICRO_BATCHES, "--resume", "auto", before=ON_TWO_NODES)
    assert "fsdp on 4 processes (2 per node, started by torchrun), 2 replicas of 2 processes each" in said
    assert "going on from step 4" in said
    require_equal(tmp_path / "resumed", tmp_path / "four", rel=0)

    at_step_4("four", "alone")
    done = cli(*fit_arguments("alone", MICRO_BATCHES, "--resume", "auto"))
    assert done.code == 0, done.err
    require_equal(tmp_path / "alone", tmp_path / "one")

    checkpoint = tmp_path / "four/checkpoints/step-00000008"
    sizes = {path.name: path.stat().st_size for path in checkpoint.glob("shard-*.ckpt")}
    assert len(sizes) == 4
    assert max(sizes.values()) < 1.2 * min(sizes.values()), "all ranks share the work of writing"
    parts = parts_on_disk(checkpoint)
    assert any("exp_avg" in name for name in parts)
    for name, held in parts.items():
        end = 0
        for start, count in sorted(part for part in held if part[1]):
            assert start == end, f"{name} has a gap, or elements twice"
            end = start + count


SPOILED = """
import torch
from dla_train.models import LanguageModel
from dla_train.training import spikes
spikes.FIRST_STEPS = 2
loss, calls = LanguageModel.loss, []
def spoiled(self, *arguments, **named):
    if torch.is_grad_enabled(): calls.append(self)
    # One window a step on each rank: step 4 is not finite, and step 6 a spike.
    factor = {4: float("inf"), 6: 1e6}.get(len(calls), 1.0) if rank == 3 and torch.is_grad_enabled() else 1.0
    return loss(self, *arguments, **named) * factor
LanguageModel.loss = spoiled
"""


@pytest.mark.slow
def test_a_step_that_a_rank_of_one_replica_spoils_is_skipped_by_both(fit_on, tmp_path):
    found = {}
    for name, strategy in (("ddp", "strategy=ddp"), ("replicas", TWO)):
        fit_on(4, name, strategy, "training.skip_above=10", "training.validate_every=null", before=SPOILED)
        found[name] = [row for row in read_rows(tmp_path / name / "metrics.csv") if row["split"] == "train"]
        assert [row["skipped"] for row in found[name]] == [0, 0, 0, 1, 1, 2, 2, 2], name
    for column in ("loss", "grad_norm"):
        here, there = ([row[column] for row in rows if row["step"] not in (4, 6)] for rows in found.values())
        assert here == pytest.approx(there, rel=1e-5), column


VARIANTS = {
    "muon": ["optimizer={kind: muon, lr: 1e-2}"],
    "tied embeddings": ["model.tie_embeddings=true"],
    "recomputed blocks": ["training.activation_checkpointing=full"],
    "calibrated and steered thresholds": ["model.mixer.memory.calibrate_rate=0.3", "model.mixer.memory.steer=0.1"],
    "learned thresholds": ["model.mixer.memory.gate=straight_through", "model.mixer.memory.learn_threshold=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_whatever_four_processes_train_with_ddp_they_train_in_two_replicas(fit_on, at_step_4, tmp_path, settings):
    fit_on(4, "ddp", "strategy=ddp", MICRO_BATCHES, *settings)
    fit_on(4, "four", TWO, MICRO_BATCHES, *settings)
    require_equal(tmp_path / "four", tmp_path / "ddp")
    at_step_4("four", "resumed")
    fit_on(4, "resumed", TWO, MICRO_BATCHES, *settings, "--resume", "auto")
    require_equal(tmp_path / "resumed", tmp_path / "four", rel=0)


OTHERS = {
    "one replica": (4, "strategy=fsdp"),
    "a replica on each rank": (4, FOUR),
    "weights kept gathered": (4, "strategy={kind: fsdp, replicas: 2, reshard_after_forward: false}"),
    "two ranks": (2, TWO),
    "ddp": (2, "strategy=ddp"),
    "zero-3": (2, "strategy={kind: deepspeed, stage: 3}"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "strategy"), OTHERS.values(), ids=OTHERS)
def test_a_run_goes_on_with_other_replicas_ranks_or_strategies(fit_on, at_step_4, tmp_path, ranks, strategy):
    fit_on(1, "one")
    for name, first, then in (("to", (4, TWO), (ranks, strategy)), ("from", (ranks, strategy), (4, TWO))):
        fit_on(first[0], name, first[1])
        require_equal(tmp_path / name, tmp_path / "one")
        at_step_4(name, f"{name}-resumed")
        assert "going on from step 4" in fit_on(then[0], f"{name}-resumed", then[1], "--resume", "auto")
        require_equal(tmp_path / f"{name}-resumed", tmp_path / "one")
