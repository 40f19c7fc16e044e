"""The fused decode step, interpreted: token by token it gives what one call of the definition gives."""

import pytest
import torch

from dla_kernels import dynamic_linear_attention

pytestmark = pytest.mark.interpret


@pytest.mark.parametrize("capacity", [1, 2, 4])
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_token_by_token(draw_inputs, capacity, delta):
    inputs = draw_inputs(18, capacity, delta=delta, batch=2, heads=2, groups=1, key_dim=5, value_dim=20).to(
        torch.float32
    )
    options = {"capacity": capacity, "threshold": 0.4}
    begin = inputs.tokens(0, 6).named()
    _, cache = dynamic_linear_attention(**begin, **options, return_cache=True, backend="reference")
    found = []
    with torch.no_grad():
        for t in range(6, 18):
            before = cache.state.clone()
            token = inputs.tokens(t, t + 1).named()
            o, after = dynamic_linear_attention(**token, **options, cache=cache, return_cache=True, backend="triton")
            assert torch.equal(cache.state, before), "a step must not change the cache it was given"
            found.append(o)
            cache = after
    exact, ended = dynamic_linear_attention(**inputs.named(), **options, return_cache=True, backend="reference")
    torch.testing.assert_close(torch.cat(found, 1), exact[:, 6:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.state_by_age(), ended.state_by_age(), rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.segment.count, ended.segment.count)
    torch.testing.assert_close(cache.segment.score_sum, ended.segment.score_sum, rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.tokens, ended.tokens)
    assert torch.equal(cache.age.sort(-1).values, torch.arange(capacity, dtype=torch.int32).expand_as(cache.age))
