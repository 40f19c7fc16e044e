"""What a device holds under each strategy: the arithmetic, and the bytes of two real ranks."""

import json
import math

import pytest
import torch

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.activations import Setting
from dla_train.estimate.footprint import footprint
from dla_train.models import LanguageModel

ZERO_1, ZERO_2, ZERO_3 = (f"strategy={{kind: deepspeed, stage: {stage}}}" for stage in (1, 2, 3))
OFFLOADED = "strategy={kind: deepspeed, stage: 2, offload_optimizer: true}"

MEASURED = """
import json, sys
from dla_train.callbacks.checkpointing import Checkpointing
from dla_train.cli.main import main
from dla_train.distributed.sharded_state import local
end = Checkpointing.on_train_end
def measure(self, trainer, module):
    strategy = trainer.strategy
    size = lambda tensors: sum(local(one).nbytes for one in tensors if one.dim())
    kept = [getattr(one, "ds_tensor", one) for one in module.parameters()]
    owners = {id(part.owner): part.owner for part in strategy.parts()}.values()
    states = [value for state in strategy.torch_optimizer().state.values() for value in state.values()]
    is_copy = {local(one).data_ptr() for one in owners}.isdisjoint(local(one).data_ptr() for one in kept)
    with open("measured.json", "w") as file:
        json.dump({"parameters": size(kept), "optimizer": size(states) + is_copy * size(owners)}, file)
    end(self, trainer, module)
Checkpointing.on_train_end = measure
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def stated(micro_recipe):
    def work(strategy, devices, *settings):
        recipe = load(find(str(micro_recipe)), [strategy, "training.micro_batch=1", *settings]).recipe
        with torch.device("meta"):
            model = LanguageModel(recipe.model)
        setting = Setting(batch=1, window=24, precision="32-true", path="torch", is_gpu=False)
        return footprint(recipe, model, devices, setting)

    return work


def test_each_stage_divides_what_it_says(stated):
    whole = stated("strategy=ddp", 4)
    one, two, three, fsdp = (stated(strategy, 4) for strategy in (ZERO_1, ZERO_2, ZERO_3, "strategy=fsdp"))
    weights = whole.gradients
    assert one.parameters == two.parameters == whole.parameters
    assert whole.parameters - three.parameters == whole.parameters - fsdp.parameters == weights - weights // 4
    assert (one.gradients, two.gradients, three.gradients) == (weights + weights // 4, weights // 4, weights // 4)
    assert one.optimizer == two.optimizer == three.optimizer == whole.optimizer // 4 + weights // 4
    assert fsdp.optimizer == whole.optimizer // 4
    assert 0 == one.gathered < fsdp.gathered <= weights
    assert {whole.checkpoint, one.checkpoint, three.checkpoint, fsdp.checkpoint} == {whole.checkpoint}

    offloaded = stated(OFFLOADED, 4)
    assert offloaded.optimizer == offloaded.stepped == 0
    assert offloaded.in_main_memory == two.optimizer + weights // 4


def test_each_replica_is_divided_among_its_own_devices(stated):
    one = stated("strategy=fsdp", 2, "strategy.devices=2")
    for replicas, devices in ((2, 4), ("nodes", 8)):
        several = stated("strategy=fsdp", devices, f"strategy.replicas={replicas}", "strategy.devices=2")
        assert several == one
    whole, alone = stated("strategy=ddp", 4), stated("strategy=fsdp", 4, "strategy.replicas=4")
    assert (alone.parameters, alone.gradients) == (whole.parameters, whole.gradients)
    assert (alone.optimizer, alone.stepped) == (whole.optimizer, whole.stepped)
    assert alone.gathered == one.gathered, "even of weights that are here, there is a copy while they are used"


def test_a_bucket_is_as_large_as_it_is_set(stated):
    assert stated(ZERO_2, 2, "strategy.config.zero_optimization.reduce_bucket_size=1000").buckets == 2 * 4 * 1000
    single = "strategy.config.zero_optimization={overlap_comm: false, reduce_bucket_size: 9}"
    assert stated(ZERO_2, 2, single).buckets == 4 * 9


def test_the_command_says_who_holds_what(cli, micro_recipe):
    done = cli("estimate", "--recipe", micro_recipe, "--devices", "2", OFFLOADED)
    assert done.code == 0, done.err
    assert "on 2 x h100, 32-true, each with a share of gradients and optimizer states (deepspeed)" in done.out
    assert "| main memory, for each device |" in done.out
    assert "Nor is the optimizer's step, which the CPU does." in done.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [(ZERO_1, 2), (ZERO_2, 2), (ZERO_3, 2), ("strategy=fsdp", 2), ("strategy={kind: fsdp, replicas: 2}", 4)],
)
def test_real_ranks_hold_so_much(start_process, micro_recipe, stated, tmp_path, strategy, ranks):
    settings = ["training.steps=4", "model.hidden=64"]
    process = start_process(
        "-c", MEASURED, "fit", "--recipe", micro_recipe, "--run-dir", "run", strategy, f"strategy.devices={ranks}",
        "training.micro_batch=1", *settings,
    )  # fmt: skip
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    measured = json.loads((tmp_path / "measured.json").read_text())
    expected = stated(strategy, ranks, *settings)
    # A share is rounded up: to rows with FSDP, per weight with ZeRO 3, per group with the others.
    assert math.isclose(measured["parameters"], expected.parameters, rel_tol=0.01)
    assert math.isclose(measured["optimizer"], expected.optimizer, rel_tol=0.01)
