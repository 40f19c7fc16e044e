import copy

import pytest
import torch

from dla_train.models import AttentionConfig, LanguageModel, ModelConfig, initialize
from dla_train.training.config import AdamWConfig, MuonConfig
from dla_train.training.optimizers import build_optimizer


@pytest.fixture
def model():
    config = ModelConfig(vocab_size=32, hidden=16, layers=2, mixer=AttentionConfig(heads=2))
    return initialize(LanguageModel(config), 0)


def _train(model, optimizer, steps):
    tokens = torch.randint(0, 32, (2, 13), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("config", [AdamWConfig(lr=1e-2), MuonConfig(lr=1e-2)], ids=["adamw", "muon"])
def test_every_parameter_is_trained_once(model, config):
    optimizer = build_optimizer(config, model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    before = copy.deepcopy(dict(model.named_parameters()))
    first, last = _train(model, optimizer, 1), _train(model, optimizer, 20)
    assert last < 0.7 * first
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_muon_moves_matrices_along_orthogonal_directions(model):
    optimizer = build_optimizer(MuonConfig(lr=1e-2, weight_decay=0.0), model)
    name, weight = next((n, p) for n, p in model.blocks.named_parameters() if p.ndim == 2)
    before = weight.detach().clone()
    _train(model, optimizer, 1)
    step = (before - weight.detach()) / (1e-2 * 0.2 * max(weight.shape) ** 0.5)
    singular = torch.linalg.svdvals(step)
    assert singular.max() < 1.3, (name, singular)
    assert singular.median() > 0.6, "the gradient's own spectrum falls off much faster"


def test_muon_goes_on_from_a_state_dict_exactly(model):
    straight = copy.deepcopy(model)
    optimizer = build_optimizer(MuonConfig(lr=1e-2), straight)
    expected = _train(straight, optimizer, 6)

    optimizer = build_optimizer(MuonConfig(lr=1e-2), model)
    _train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = build_optimizer(MuonConfig(lr=1e-2), model)
    resumed.load_state_dict(saved)
    assert _train(model, resumed, 3) == expected


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -1.0}])
def test_impossible_values_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        MuonConfig(**{"lr": 1e-3, **change})
