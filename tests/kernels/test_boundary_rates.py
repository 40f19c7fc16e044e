"""The inputs of other tests give boundaries never, sometimes and always; otherwise those tests would prove little."""

import pytest
import torch

from dla_kernels import segment


@pytest.mark.parametrize("time", [65, 500])
def test_rates_of_the_shared_thresholds(draw_inputs, make_plan, time):
    plan = make_plan("dynamic", draw_inputs(time, 15, batch=2))
    rates = plan.boundary[:, 1:].float().mean((0, 1)).tolist()
    assert rates[0] > 0.95
    assert 0.6 < rates[1] < 0.9
    assert 0.25 < rates[2] < 0.6
    assert rates[3] < 0.05


def test_rates_of_features_at_the_papers_threshold(draw_inputs):
    """tau = 0.6: independent features give a boundary at every token, correlated ones a few, a strong mean none."""

    def rate(persistence, mean):
        inputs = draw_inputs(400, 15, persistence=persistence, key_dim=16, value_dim=16)
        plan = segment(inputs.k + mean, inputs.v + mean, 15, 0.6)
        return plan.boundary[:, 1:].float().mean().item()

    assert rate(0.0, mean=0.0) > 0.95
    assert 0.01 < rate(0.99, mean=0.0) < 0.15
    assert rate(0.9, mean=5.0) < 0.01


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_score_equal_to_the_threshold_makes_a_boundary(backend):
    k = torch.tensor([[1.0, 0], [0, 1]])[None, :, None]
    v = torch.ones(1, 2, 1, 1)
    root = segment(k, v, 4, 0.6, backend=backend).score[0, 1, 0].item()  # sqrt 2 in float32, whichever way it rounds
    above = torch.nextafter(torch.tensor(root), torch.tensor(2.0)).item()
    assert segment(k, v, 4, root, backend=backend).boundary[0, 1, 0]
    assert not segment(k, v, 4, above, backend=backend).boundary[0, 1, 0]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_threshold_zero_makes_every_token_a_boundary(backend):
    same = torch.ones(1, 9, 1, 2)
    assert segment(same, same, 4, 0.0, backend=backend).boundary.all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("gate", ["hard", "straight_through"])
def test_with_one_slot_every_token_joins(draw_inputs, backend, gate):
    inputs = draw_inputs(70, 1, batch=2)
    plan = segment(inputs.k, inputs.v, 1, 0.0, backend=backend, gate=gate)
    assert (plan.shift == -1).all()
    assert (plan.slots_in_use() == 1).all()
    assert plan.final is not None
    assert (plan.final.count == 70).all()
    if gate == "straight_through":
        assert (plan.gate == 0).all()
