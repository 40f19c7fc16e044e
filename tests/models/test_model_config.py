"""Configurations refuse what cannot work, in words that help."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GatedDeltaNetConfig,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    SingleMemory,
    model_config_from_dict,
)

MAMBA: dict[str, Any] = {"heads": 4, "memory": SingleMemory()}
MODEL: dict[str, Any] = {"vocab_size": 10, "hidden": 64, "layers": 1, "mixer": AttentionConfig(heads=4)}


def mamba(**fields: Any) -> Mamba2Config:
    return Mamba2Config(**{**MAMBA, **fields})


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(**{**MODEL, **fields})


def dynamic(**fields: Any) -> DynamicMemory:
    return DynamicMemory(**fields)


@pytest.mark.parametrize(
    ("make", "field", "given", "allowed"),
    [
        (lambda: FixedMemory(block=0), "block", "0", "at least 1"),
        (lambda: FixedMemory(capacity=-3), "capacity", "-3", "at least 1"),
        (lambda: FenwickMemory(capacity=0), "capacity", "0", "at least 1"),
        (lambda: dynamic(capacity=0), "capacity", "0", "at least 1"),
        (lambda: dynamic(capacity=2.5), "capacity", "2.5", "whole number"),
        (lambda: dynamic(threshold=2.5), "threshold", "2.5", "[0, 2]"),
        (lambda: dynamic(threshold=float("nan")), "threshold", "nan", "[0, 2]"),
        (lambda: dynamic(gate="soft"), "gate", "'soft'", "hard, straight_through"),
        (lambda: dynamic(gate_width=0.0), "gate_width", "0.0", "greater than 0"),
        (lambda: dynamic(learn_threshold=True, gate="hard"), "learn_threshold", "'hard'", "straight_through"),
        (lambda: dynamic(kind="fixed"), "kind", "'fixed'", "'dynamic'"),
        (lambda: mamba(heads=0), "heads", "0", "at least 1"),
        (lambda: mamba(heads=True), "heads", "True", "whole number"),
        (lambda: mamba(groups=3), "groups", "3", "multiple"),
        (
            lambda: mamba(memory="dynamic"),
            "memory",
            "'dynamic'",
            "single, fixed, fenwick, dynamic",
        ),
        (
            lambda: GatedDeltaNetConfig(heads=2, key_dim=0, value_dim=4, memory=SingleMemory()),
            "key_dim",
            "0",
            "at least 1",
        ),
        (lambda: AttentionConfig(heads=2, rope_base=1.0), "rope_base", "1.0", "greater than 1"),
        (lambda: model(hidden=60), "hidden", "60", "multiple of twice the heads"),
        (lambda: model(layers=0), "layers", "0", "at least 1"),
        (lambda: model(mlp_ratio=-1.0), "mlp_ratio", "-1.0", "greater than 0"),
        (lambda: model(init_std=float("inf")), "init_std", "inf", "greater than 0"),
        (lambda: model(tie_embeddings=1), "tie_embeddings", "1", "true or false"),
        (lambda: model(mixer="mamba2"), "mixer", "'mamba2'", "mamba2, gated_deltanet, attention"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_what_is_allowed(
    make: Any, field: str, given: str, allowed: str
) -> None:
    with pytest.raises(ValueError, match=rf"\b{field}\b") as error:
        make()
    assert given in str(error.value)
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("hidden", "ratio", "width"), [(1536, 4.0, 4096), (2048, 4.0, 5504), (96, 2.0, 128), (48, 1.0, 64)]
)
def test_the_mlp_width_is_two_thirds_of_the_ratio_rounded_up(hidden: int, ratio: float, width: int) -> None:
    assert model(hidden=hidden, mlp_ratio=ratio).mlp_hidden == width


@pytest.mark.parametrize(
    "mixer",
    [
        Mamba2Config(heads=4, groups=2, memory=DynamicMemory(capacity=7, threshold=0.5, learn_threshold=True)),
        GatedDeltaNetConfig(heads=2, key_dim=8, value_dim=16, memory=FixedMemory(block=3)),
        AttentionConfig(heads=2, rope_base=1e4),
    ],
)
def test_a_configuration_survives_json(mixer: Any) -> None:
    config = ModelConfig(vocab_size=11, hidden=64, layers=3, mixer=mixer, tie_embeddings=True)
    assert model_config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_reading_names_what_is_unknown_or_missing() -> None:
    fields = dataclasses.asdict(ModelConfig(vocab_size=11, hidden=64, layers=3, mixer=mamba()))
    with pytest.raises(ValueError, match=re.escape("model has no field 'depth'; its fields are vocab_size, hidden")):
        model_config_from_dict(fields | {"depth": 2})
    with pytest.raises(ValueError, match="model lacks the field 'layers'"):
        model_config_from_dict({key: value for key, value in fields.items() if key != "layers"})
    with pytest.raises(ValueError, match=re.escape("mixer.kind is 'mamba3'; it must be one of mamba2")):
        model_config_from_dict(fields | {"mixer": fields["mixer"] | {"kind": "mamba3"}})
    with pytest.raises(ValueError, match=re.escape("mixer.memory is 'dynamic'; it must be a table")):
        model_config_from_dict(fields | {"mixer": fields["mixer"] | {"memory": "dynamic"}})


def test_blocks_may_have_no_mlp() -> None:
    config = model(mlp_ratio=None, layers=2)
    assert config.mlp_hidden == 0
    assert model_config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    names = LanguageModel(config).state_dict()
    assert names
    assert not [name for name in names if "mlp" in name]
