"""DeepSpeed's configuration: defaults, the recipe's part, and keys of the user."""

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.distributed.deepspeed_config import deepspeed_config, require_known_keys
from dla_train.errors import UsageError


@pytest.fixture
def recipe(micro_recipe):
    return lambda *settings: load(find(str(micro_recipe)), ["strategy=deepspeed", *settings])


def configuration(loaded):
    return deepspeed_config(loaded.recipe.strategy, loaded.recipe.training, accumulate=3)


def test_the_recipe_decides_batches_clipping_and_precision(recipe):
    config = configuration(recipe("training.clip=0.25", "training.precision=bf16-mixed", "training.micro_batch=4"))
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (4, 3)
    assert config["gradient_clipping"] == 0.25
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert config["zero_optimization"]["stage"] == 2
    plain = configuration(recipe("training.clip=null"))
    assert plain["gradient_clipping"] == 0
    assert not {"torch_autocast", "bf16", "fp16", "optimizer", "scheduler"} & plain.keys()


def test_keys_of_the_user_are_laid_over_the_defaults(recipe):
    loaded = recipe(
        "strategy.stage=3",
        "strategy.offload_optimizer=true",
        "strategy.config.zero_optimization.reduce_bucket_size=1000",
        "strategy.config.communication_data_type=fp32",
    )
    require_known_keys(loaded)
    config = configuration(loaded)
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"], zero["overlap_comm"]) == (3, 1000, True)
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert config["communication_data_type"] == "fp32"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("strategy.stage=4", "strategy.stage is 4; it must be 1, 2 or 3"),
        (
            "strategy.config.train_batch_size=8",
            "strategy.config.train_batch_size is decided by training.global_batch; take it out",
        ),
        (
            "strategy.config.zero_optimization.offload_optimizer={device: cpu}",
            "strategy.config.zero_optimization.offload_optimizer is decided by strategy.offload_optimizer; take it out",
        ),
        ("strategy.config.bf16={enabled: true}", "config.bf16 is decided by training.precision"),
        ("strategy.config.zero_optimisation={}", "did you mean zero_optimization? it takes zero_optimization, torch"),
        ("strategy.config.zero_optimization=3", "config.zero_optimization is 3; it must be a section of keys and"),
        ("strategy.config.pipeline={}", "strategy.config.pipeline is not supported: the model is not cut into stages"),
        ("strategy.config=3", "strategy.config must be a section of keys and values, but is 3"),
        ("optimizer={kind: muon, lr: 1e-2}", "optimizer.kind is muon, which steps by whole matrices, and DeepSpeed"),
        ("training.precision=bf16-true", "training.precision is bf16-true, but strategy deepspeed keeps float32"),
    ],
)
def test_what_cannot_be_is_refused_by_name(recipe, setting, message):
    with pytest.raises(UsageError) as error:
        recipe(setting)
    assert message in str(error.value)


def test_a_key_that_deepspeed_does_not_take_is_named_before_the_run(recipe):
    loaded = recipe("strategy.config.zero_optimization.reduce_buket_size=1000")
    with pytest.raises(UsageError, match=r"\.config\.zero_optimization\.reduce_buket_size: DeepSpeed says: Extra"):
        require_known_keys(loaded)


def test_calibrating_what_is_learned_is_refused_where_it_is_cut_up(micro_recipe):
    learned = ["model.mixer.memory={kind: dynamic, capacity: 4, threshold: 0.9, gate: straight_through, "
               "learn_threshold: true, calibrate_rate: 0.2}"]  # fmt: skip
    load(find(str(micro_recipe)), ["strategy=ddp", *learned])
    with pytest.raises(
        UsageError, match=r"model\.mixer\.memory\.calibrate_rate is given and learn_threshold true, but"
    ):
        load(find(str(micro_recipe)), ["strategy=fsdp", *learned])
    hybrid = ["model.hybrid={every: 2, mixer: {kind: mamba2, heads: 2, head_dim: 8, memory: {kind: dynamic, "
              "learn_threshold: true, calibrate_rate: 0.2}}}"]  # fmt: skip
    with pytest.raises(UsageError, match=r"model\.hybrid\.mixer\.memory\.calibrate_rate is given and learn_threshold"):
        load(find(str(micro_recipe)), ["strategy=fsdp", "model.mixer.memory=single", *hybrid])
