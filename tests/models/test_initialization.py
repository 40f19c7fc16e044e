"""Where parameters start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dla_train.models import DynamicMemory, LanguageModel, initialize
from dla_train.models.memory import Dynamic


def test_a_new_model_is_useless_until_it_is_initialized(
    make_model: Any, tokens: Any, any_case: tuple[str, str]
) -> None:
    config = make_model(*any_case).config
    model = LanguageModel(config)
    assert all(p.isnan().all() for p in model.parameters())
    initialize(model, seed=0)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_seed_decides_and_nothing_else(make_model: Any, any_case: tuple[str, str]) -> None:
    config = make_model(*any_case).config
    torch.manual_seed(1)
    first = initialize(LanguageModel(config), seed=7).state_dict()
    torch.manual_seed(2)
    with torch.device("meta"):
        model = LanguageModel(config)
    second = initialize(model.to_empty(device="cpu"), seed=7).state_dict()
    other = initialize(LanguageModel(config), seed=8).state_dict()
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    assert not torch.equal(other["embedding.weight"], first["embedding.weight"])


def test_wider_types_hold_the_same_numbers(make_model: Any) -> None:
    config = make_model("mamba2", "dynamic").config
    narrow = initialize(LanguageModel(config), seed=0).state_dict()
    wide = initialize(LanguageModel(config).double(), seed=0).state_dict()
    assert all(torch.equal(wide[name], value.double()) for name, value in narrow.items())


def test_models_that_differ_in_memory_share_all_other_weights(make_model: Any) -> None:
    single, dynamic = (
        make_model("gated_deltanet", "single").state_dict(),
        make_model("gated_deltanet", "dynamic").state_dict(),
    )
    assert all(torch.equal(dynamic[name], value) for name, value in single.items())


def test_no_two_parameters_share_their_numbers(make_model: Any) -> None:
    model = make_model("mamba2", "dynamic")
    first, second = (block.mixer.in_proj.weight for block in model.blocks)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("kind", "low", "high"), [("mamba2", 1.0, 16.0), ("gated_deltanet", 0.0, 16.0)])
def test_decays_start_in_the_published_ranges(make_model: Any, kind: str, low: float, high: float) -> None:
    model = make_model(kind, layers=150)
    a = torch.cat([block.mixer.A_log.exp() for block in model.blocks])
    assert low <= a.min() < low + 1
    assert high - 1 < a.max() <= high
    assert abs(a.mean() - (low + high) / 2) < 1, "uniform, where its logarithm is not"
    dt = torch.cat([F.softplus(block.mixer.dt_bias) for block in model.blocks])
    assert 0.99e-3 <= dt.min() < 2e-3
    assert 0.05 < dt.max() <= 1.01e-1
    # log-uniform: half of the values lie below the geometric mean, 0.01
    assert 0.4 < (dt < math.sqrt(1e-3 * 1e-1)).double().mean() < 0.6


def test_matrices_start_with_the_given_deviation(make_model: Any) -> None:
    model = make_model("mamba2", "dynamic", hidden=128, init_std=0.006)
    for weight in (model.embedding.weight, model.head.weight, model.blocks[1].mixer.in_proj.weight):
        assert math.isclose(weight.std().item(), 0.006, rel_tol=0.05)
        assert abs(weight.mean().item()) < 3e-4
    conv = model.blocks[0].mixer.conv
    assert 0.49 < conv.weight.abs().max() <= 0.5
    assert not conv.bias.any()
    assert (model.blocks[0].mixer.D == 1).all()
    assert (model.blocks[0].mixer.memory.slot_weight.scale == 1).all()


def test_thresholds_start_at_the_recipe(make_model: Any) -> None:
    for learned in (False, True):
        config = make_model("mamba2", DynamicMemory(threshold=0.4, learn_threshold=learned)).config
        with torch.device("meta"):
            model = LanguageModel(config)
        initialize(model.to_empty(device="cpu"), seed=0)
        thresholds = [module.threshold for module in model.modules() if isinstance(module, Dynamic)]
        assert len(thresholds) == 2
        assert all((threshold == 0.4).all() for threshold in thresholds)


def test_tied_embeddings_stay_tied(make_model: Any) -> None:
    model = make_model("mamba2", tie_embeddings=True)
    assert model.head.weight is model.embedding.weight


def test_the_meta_device_is_refused(make_model: Any) -> None:
    config = make_model("attention").config
    with torch.device("meta"):
        model = LanguageModel(config)
    with pytest.raises(ValueError, match=r"the model is on the meta device; call model.to_empty"):
        initialize(model, seed=0)
