"""Weight decay: on matrices, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from dla_train.models import DynamicMemory

NO_DECAY = ("norm.weight", "bias", "A_log", "dt_bias", ".D", "slot_weight.scale", "threshold")


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_one_group(make_model: Any, any_case: tuple[str, str], tied: bool) -> None:
    model = make_model(*any_case, tie_embeddings=tied)
    decay, no_decay = model.parameter_groups(0.1)
    assert decay["weight_decay"] == 0.1
    assert no_decay["weight_decay"] == 0.0
    ids = [id(p) for group in (decay, no_decay) for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_which_parameters_decay(make_model: Any, kind: str) -> None:
    model = make_model(kind, DynamicMemory(learn_threshold=True))
    decayed = {id(p) for p in model.parameter_groups(0.1)[0]["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) != name.endswith(NO_DECAY), name


def test_negative_decay_is_refused(make_model: Any) -> None:
    with pytest.raises(ValueError, match=r"weight_decay is -0.1; it must be at least 0"):
        make_model("attention").parameter_groups(-0.1)
