"""Models with two kinds of mixers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    Mamba2Config,
    MixerConfig,
    ModelConfig,
    SingleMemory,
    model_config_from_dict,
)

MAMBA = Mamba2Config(heads=4, head_dim=8, state_dim=6, memory=DynamicMemory(capacity=4))
SOFTMAX = AttentionConfig(heads=4)


def model(hybrid: Any = None, mixer: MixerConfig = MAMBA, **fields: Any) -> ModelConfig:
    shape: dict[str, Any] = {"vocab_size": 11, "hidden": 16, "layers": 6} | fields
    return ModelConfig(mixer=mixer, hybrid=hybrid, **shape)


@pytest.mark.parametrize(
    ("hybrid", "softmax"),
    [
        (HybridConfig(every=2, mixer=SOFTMAX), [1, 3, 5]),
        (HybridConfig(every=4, mixer=SOFTMAX), [3]),
        (HybridConfig(every=6, mixer=SOFTMAX), [5]),
        (HybridConfig(layers=(4, 0), mixer=SOFTMAX), [0, 4]),
        (None, []),
    ],
)
def test_the_blocks_that_have_the_other_mixer(hybrid: HybridConfig | None, softmax: list[int]) -> None:
    config = model(hybrid)
    assert [index for index, mixer in enumerate(config.mixers) if mixer == SOFTMAX] == softmax
    assert set(config.mixers) <= {MAMBA, SOFTMAX}
    kinds = [type(block.mixer).__name__ for block in LanguageModel(config).blocks]
    assert [index for index, kind in enumerate(kinds) if kind == "Attention"] == softmax
    assert kinds.count("Mamba2") == 6 - len(softmax)
    assert config.has_attention == bool(softmax)
    assert config.memories == (MAMBA.memory,)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HybridConfig(mixer=SOFTMAX), "which blocks these are, and neither is given; give one of them"),
        (lambda: HybridConfig(mixer=SOFTMAX, every=2, layers=(1,)), "and both are given"),
        (lambda: HybridConfig(mixer=SOFTMAX, every=1), "every is 1, which leaves no block for model.mixer"),
        (lambda: HybridConfig(mixer=SOFTMAX, every=0), "every is 0; it must be a whole number of at least 1"),
        (lambda: HybridConfig(mixer=SOFTMAX, layers=()), r"layers is \[\]; it must name one block or more"),
        (lambda: HybridConfig(mixer=SOFTMAX, layers=(1, 1)), r"layers is \[1, 1\]; it must name"),
        (lambda: HybridConfig(mixer=SOFTMAX, layers=(-1,)), "layers has -1; each must be the number of a block"),
        (lambda: HybridConfig(mixer="attention", every=2), "mixer is 'attention'; it must be one of mamba2"),  # type: ignore[arg-type]
        (lambda: model(HybridConfig(mixer=SOFTMAX, every=7)), "hybrid.every is 7, but layers is only 6"),
        (lambda: model(HybridConfig(mixer=SOFTMAX, layers=(6,))), "hybrid.layers has 6, but layers is 6: .* 0 to 5"),
        (lambda: model(HybridConfig(mixer=SOFTMAX, layers=(0,)), layers=1), "hybrid.layers has every block"),
        (lambda: model("attention"), "hybrid is 'attention'; it must be a table"),
        (
            lambda: model(HybridConfig(mixer=AttentionConfig(heads=3), every=2)),
            "hidden is 16 and hybrid.mixer.heads is 3; hidden must be a multiple",
        ),
        (
            lambda: model(mixer=AttentionConfig(heads=3, rope_base=None)),
            "hidden is 16 and mixer.heads is 3; hidden must be a multiple of the heads$",
        ),
        (lambda: AttentionConfig(heads=4, kv_heads=3), "kv_heads is 3 and heads is 4; heads must be a multiple"),
        (lambda: AttentionConfig(heads=4, window=0), "window is 0; it must be a whole number of at least 1"),
        (
            lambda: model(
                HybridConfig(every=2, mixer=dataclasses.replace(MAMBA, memory=DynamicMemory(calibrate_rate=0.1)))
            ),
            "hybrid.mixer.memory.calibrate_rate is 0.1 and mixer.memory.calibrate_rate None; all thresholds are set",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_configuration_survives_json() -> None:
    for which in ({"every": 3}, {"layers": (0, 5)}):
        config = model(HybridConfig(mixer=AttentionConfig(heads=2, window=8, rope_base=None), **which))
        assert model_config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    fields = dataclasses.asdict(model(HybridConfig(mixer=SOFTMAX, every=2)))
    with pytest.raises(ValueError, match=r"hybrid\.mixer\.kind is 'rwkv'; it must be one of"):
        model_config_from_dict(fields | {"hybrid": fields["hybrid"] | {"mixer": {"kind": "rwkv"}}})
    with pytest.raises(ValueError, match="layers is 3; it must be a list of the numbers of blocks"):
        model_config_from_dict(fields | {"hybrid": fields["hybrid"] | {"every": None, "layers": 3}})
    del fields["hybrid"]
    assert model_config_from_dict(fields).hybrid is None, "a file of a version before there were hybrids"


def test_which_memories_there_are() -> None:
    delta = GatedDeltaNetConfig(heads=2, key_dim=4, value_dim=8, memory=SingleMemory())
    config = model(HybridConfig(every=2, mixer=MAMBA), mixer=delta)
    assert config.memories == (delta.memory, MAMBA.memory)
    assert config.dynamic is MAMBA.memory
    assert not config.has_attention
    assert model(mixer=SOFTMAX).memories == ()
    assert model(mixer=SOFTMAX).dynamic is None


@pytest.mark.parametrize(
    ("softmax", "any_length"),
    [
        (AttentionConfig(heads=4), False),
        (AttentionConfig(heads=4, window=32), True),
        (AttentionConfig(heads=4, window=33), False),
        (AttentionConfig(heads=4, rope_base=None), True),
    ],
)
def test_a_hybrid_reads_any_length_unless_it_meets_new_positions(softmax: AttentionConfig, any_length: bool) -> None:
    assert model(HybridConfig(every=2, mixer=softmax)).reads_any_length(32) == any_length
    assert model(mixer=softmax).reads_any_length(32) == any_length
    assert model().reads_any_length(32)


def test_the_cache_of_the_same_blocks_in_another_order_is_refused(make_model: Any, tokens: Any) -> None:
    mine, other = make_model("mamba2+hybrid", "dynamic"), make_model("mamba2+hybrid-first", "dynamic")
    _, cache = other.hidden_states(tokens(1, 4), return_cache=True)
    with pytest.raises(ValueError, match="this model 2 of AttentionCache, LinearCache in another order"):
        mine.hidden_states(tokens(1, 1), cache=cache)


def test_blocks_that_both_models_have_begin_with_the_same_weights(make_model: Any) -> None:
    """So hybrids differ from the plain model in nothing but the blocks that they replace."""
    plain, hybrid = make_model("mamba2", "dynamic"), make_model("mamba2+hybrid", "dynamic")
    found, wanted = hybrid.state_dict(), plain.state_dict()
    same = {name for name in wanted if not name.startswith("blocks.1.mixer.")}
    assert same < set(wanted)
    for name in same:
        assert torch.equal(found[name], wanted[name]), name
