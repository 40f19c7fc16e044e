"""The fused decode step, interpreted: token by token it gives what one call of the definition gives."""

import dataclasses

import pytest
import torch

from dla_kernels import dynamic_linear_attention

pytestmark = pytest.mark.interpret


@pytest.mark.parametrize("capacity", [1, 2, 4])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("donated", [False, True], ids=["kept", "donated"])
def test_token_by_token(draw_inputs, capacity, delta, donated):
    inputs = draw_inputs(18, capacity, delta=delta, batch=2, heads=2, groups=1, key_dim=5, value_dim=20).to(
        torch.float32
    )
    options = {"capacity": capacity, "threshold": 0.4}
    begin = inputs.tokens(0, 6).named()
    _, cache = dynamic_linear_attention(**begin, **options, return_cache=True, backend="reference")
    found = []
    kept, before = cache, cache.state.clone()
    if donated:
        cache = dataclasses.replace(cache, state=before.clone()).donated()
    where = cache.state.data_ptr()
    with torch.no_grad():
        for t in range(6, 18):
            if not donated:
                kept, before = cache, cache.state.clone()
            token = inputs.tokens(t, t + 1).named()
            o, cache = dynamic_linear_attention(**token, **options, cache=cache, return_cache=True, backend="triton")
            assert torch.equal(kept.state, before), "a step must not change a cache that is not donated"
            assert not donated or cache.state.data_ptr() == where
            assert (cache.lag is not None) == (donated and not delta)
            found.append(o)
    exact, ended = dynamic_linear_attention(**inputs.named(), **options, return_cache=True, backend="reference")
    torch.testing.assert_close(torch.cat(found, 1), exact[:, 6:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.state_by_age(), ended.state_by_age(), rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.segment.count, ended.segment.count)
    torch.testing.assert_close(cache.segment.score_sum, ended.segment.score_sum, rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.tokens, ended.tokens)
    assert torch.equal(cache.age.sort(-1).values, torch.arange(capacity, dtype=torch.int32).expand_as(cache.age))


def test_a_slot_that_is_only_read_is_not_written(draw_inputs):
    inputs = draw_inputs(40, 6, delta=False, batch=1, heads=2, groups=1, key_dim=5, value_dim=20).to(torch.float32)
    options = {"capacity": 6, "threshold": 0.4, "return_cache": True}
    _, cache = dynamic_linear_attention(**inputs.tokens(0, 20).named(), **options, backend="reference")
    cache = cache.donated()
    written = []
    with torch.no_grad():
        for t in range(20, 40):
            before = cache.state.clone()
            token = inputs.tokens(t, t + 1).named()
            _, cache = dynamic_linear_attention(**token, **options, cache=cache, backend="triton")
            written += (cache.state != before).any(-1).any(-1).sum(-1).flatten().tolist()
            assert ((cache.lag == 0).all(-1).sum(-1) >= 1).all()
    assert set(written) == {1, 2}, "the open slot; at a boundary the one that was merged into, too"


def test_a_cache_that_lags_goes_into_any_other_call(draw_inputs):
    inputs = draw_inputs(24, 4, delta=False, batch=2, heads=2, groups=1, key_dim=5, value_dim=20).to(torch.float32)
    options = {"capacity": 4, "threshold": 0.4, "return_cache": True}
    exact, ended = dynamic_linear_attention(**inputs.named(), **options, backend="reference")
    _, cache = dynamic_linear_attention(**inputs.tokens(0, 6).named(), **options, backend="reference")
    cache = cache.donated()
    with torch.no_grad():
        for t in range(6, 12):
            token = inputs.tokens(t, t + 1).named()
            _, cache = dynamic_linear_attention(**token, **options, cache=cache, backend="triton")
    assert (cache.lag < 0).any()
    for backend in ("reference", "torch", "triton"):
        rest = inputs.tokens(12, 24).named()
        o, after = dynamic_linear_attention(**rest, **options, cache=cache, backend=backend)
        torch.testing.assert_close(o, exact[:, 12:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after.state_by_age(), ended.state_by_age(), rtol=1e-5, atol=1e-5)
    kept = cache.settled()
    before = kept.state.clone()
    with torch.no_grad():
        token = inputs.tokens(12, 13).named()
        o, _ = dynamic_linear_attention(**token, **options, cache=kept, backend="triton")
    assert torch.equal(kept.state, before)
    torch.testing.assert_close(o, exact[:, 12:13], rtol=1e-5, atol=1e-5)


def test_a_cache_that_lags_goes_on_with_the_delta_rule(draw_inputs):
    """Which changes every slot, so none may stay as it is."""
    inputs = draw_inputs(24, 4, delta=True, batch=2, heads=2, groups=1, key_dim=5, value_dim=20).to(torch.float32)
    options = {"capacity": 4, "threshold": 0.4, "return_cache": True}
    plain = dataclasses.replace(inputs, beta=None)
    _, cache = dynamic_linear_attention(**plain.tokens(0, 6).named(), **options, backend="reference")
    cache, token = cache.donated(), inputs.tokens(12, 13).named()
    with torch.no_grad():
        for t in range(6, 12):
            now = plain.tokens(t, t + 1).named()
            _, cache = dynamic_linear_attention(**now, **options, cache=cache, backend="triton")
        assert (cache.lag < 0).any()
        exact, after = dynamic_linear_attention(**token, **options, cache=cache.settled(), backend="reference")
        o, ended = dynamic_linear_attention(**token, **options, cache=cache, backend="triton")
    torch.testing.assert_close(o, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ended.state_by_age(), after.state_by_age(), rtol=1e-5, atol=1e-5)


def test_decay_over_many_steps_loses_nothing_to_rounding(draw_inputs):
    """A slot that is only read for long lags by a sum of small numbers, each below what float32 would still see."""
    inputs = draw_inputs(2, 2, delta=False, batch=1, heads=1, groups=1, key_dim=5, value_dim=20).to(torch.float32)
    options = {"capacity": 2, "return_cache": True}
    opening, joining = torch.zeros(1), torch.full((1,), 2.0)
    begin = inputs.tokens(0, 2).named()
    _, cache = dynamic_linear_attention(**begin, **options, threshold=opening, backend="reference")
    old = int(cache.age[0, 0].argmax())
    lag = torch.zeros(1, 1, 2, 2)
    lag[0, 0, old, 0] = -1.0
    cache = dataclasses.replace(cache, lag=lag).donated()
    token = inputs.tokens(1, 2).named() | {"log_decay": torch.full((1, 1, 1), -2e-8)}
    with torch.no_grad():
        for _ in range(20):
            _, cache = dynamic_linear_attention(**token, **options, threshold=joining, cache=cache, backend="triton")
    assert cache.lag[0, 0, old].double().sum().item() == pytest.approx(-1 - 20 * 2e-8, abs=1e-11)
    assert (cache.lag[0, 0, 1 - old] == 0).all(), "the open slot is written"


@pytest.mark.parametrize("slots", [3, 5])
def test_weights_of_another_number_of_slots_are_refused(draw_inputs, slots):
    inputs = draw_inputs(8, 4, delta=False, batch=1, heads=2, groups=1, key_dim=5, value_dim=20).to(torch.float32)
    options = {"capacity": 4, "threshold": 0.4, "return_cache": True}
    _, cache = dynamic_linear_attention(**inputs.tokens(0, 7).named(), **options, backend="reference")
    token = inputs.tokens(7, 8).named() | {"slot_weight": torch.ones(1, 1, 2, slots)}
    with torch.no_grad(), pytest.raises(ValueError, match=f"last size of slot_weight is {slots};"):
        dynamic_linear_attention(**token, **options, cache=cache, backend="triton")


@pytest.mark.parametrize("wrong", [{"gate": "soft"}, {"gate_width": -1.0}, {"scale": torch.ones(())}], ids=str)
def test_a_decoding_step_refuses_what_any_call_refuses(draw_inputs, wrong):
    inputs = draw_inputs(8, 4, delta=False, batch=1, heads=2, groups=1, key_dim=5, value_dim=20).to(torch.float32)
    options = {"capacity": 4, "threshold": 0.4, "return_cache": True}
    _, cache = dynamic_linear_attention(**inputs.tokens(0, 7).named(), **options, backend="reference")
    token = inputs.tokens(7, 8).named()
    with torch.no_grad(), pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        dynamic_linear_attention(**token, **options, **wrong, cache=cache, backend="triton")
