import copy

import pytest
import torch

from dla_train.models import AttentionConfig, LanguageModel, ModelConfig, initialize
from dla_train.training.config import AdamWConfig, MuonConfig
from dla_train.training.muon import MuonWithAdamW, orthogonalized
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


def test_every_setting_reaches_the_parameters_that_it_is_for(model):
    adamw = {"lr": 3e-3, "betas": (0.7, 0.8), "eps": 1e-5}
    decay, rest = build_optimizer(AdamWConfig(weight_decay=0.3, **adamw), model).param_groups
    for group, weight_decay in ((decay, 0.3), (rest, 0.0)):
        assert {name: group[name] for name in (*adamw, "weight_decay")} == {**adamw, "weight_decay": weight_decay}

    matrices, decay, rest = build_optimizer(MuonConfig(momentum=0.6, weight_decay=0.3, **adamw), model).param_groups
    assert (matrices["lr"], matrices["momentum"], matrices["weight_decay"]) == (3e-3, 0.6, 0.3)
    for group, weight_decay in ((decay, 0.3), (rest, 0.0)):
        assert {name: group[name] for name in (*adamw, "weight_decay")} == {**adamw, "weight_decay": weight_decay}
    ids = {id(parameter) for parameter in matrices["params"]}
    assert ids == {id(parameter) for parameter in model.blocks.parameters() if parameter.ndim == 2}


def test_muon_moves_matrices_along_orthogonal_directions(model):
    optimizer = build_optimizer(MuonConfig(lr=1e-2, weight_decay=0.0), model)
    name, weight = next((n, p) for n, p in model.blocks.named_parameters() if p.ndim == 2)
    before = weight.detach().clone()
    _train(model, optimizer, 1)
    step = (before - weight.detach()) / (1e-2 * 0.2 * max(weight.shape) ** 0.5)
    singular = torch.linalg.svdvals(step)
    assert singular.max() < 1.3, (name, singular)
    assert singular.median() > 0.6, "the gradient's own spectrum falls off much faster"


def test_muon_moves_as_pytorchs_does():
    """Which orthogonalises in bfloat16, so that a step may differ by some of its roundings."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 24), (16, 40), (40, 16), (1, 8)]
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [matrix.detach().clone().requires_grad_() for matrix in ours]
    start = [matrix.detach().clone() for matrix in ours]
    settings = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}
    our_optimizer = MuonWithAdamW(
        ours, [{"params": [torch.nn.Parameter(torch.zeros(1))]}], betas=(0.9, 0.9), eps=1e-8, **settings
    )
    their_optimizer = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(4):
        for our_matrix, their_matrix in zip(ours, theirs, strict=True):
            our_matrix.grad = torch.randn(our_matrix.shape, generator=generator)
            their_matrix.grad = our_matrix.grad.clone()
        our_optimizer.step()
        their_optimizer.step()
    for our_matrix, their_matrix, before in zip(ours, theirs, start, strict=True):
        moved, expected = our_matrix - before, their_matrix - before
        assert (moved - expected).norm() < 2e-2 * expected.norm()
        state, their_state = our_optimizer.state[our_matrix], their_optimizer.state[their_matrix]
        torch.testing.assert_close(state["momentum_buffer"], their_state["momentum_buffer"])


def test_muon_decays_the_weight_as_it_was_and_not_the_update():
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 12, generator=generator))
    weight.grad = torch.randn(8, 12, generator=generator)
    expected = 0.5 * weight.detach() - 0.2 * 12**0.5 * 0.01 * orthogonalized(weight.grad)
    others = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    MuonWithAdamW([weight], others, lr=0.01, momentum=0.9, weight_decay=50.0, betas=(0.9, 0.9), eps=1e-8).step()
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        MuonWithAdamW(
            [torch.nn.Parameter(torch.zeros(3))],
            [],
            lr=1e-2,
            momentum=0.9,
            weight_decay=0.0,
            betas=(0.9, 0.9),
            eps=1e-8,
        )


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
