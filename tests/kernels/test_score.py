"""The State Information Score (eq. 13) on cases whose value can be said by hand."""

import math

import pytest
import torch

from dla_kernels import segment

BACKENDS = ["reference", "torch"]


def scores(keys, values, backend, **options):
    """Scores `[T]` of tokens given as rows; the threshold of 2 keeps all but opposites in one segment."""
    k, v = (torch.tensor(x, dtype=torch.float32)[None, :, None] for x in (keys, values))
    return segment(k, v, 4, options.pop("threshold", 2.0), backend=backend, **options).score[0, :, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("second_key", "second_value", "expected"),
    [
        ([1, 0], [2, 0, 0], 0.0),  # the same token
        ([5, 0], [0.5, 0, 0], 0.0),  # the same direction
        ([-1, 0], [-3, 0, 0], 0.0),  # (-k)(-v)^T is the same state
        ([0, 1], [2, 0, 0], math.sqrt(2)),  # another key
        ([1, 0], [0, 0, 7], math.sqrt(2)),  # another value
        ([-1, 0], [2, 0, 0], 2.0),  # the opposite
        ([1, 1], [2, 0, 0], math.sqrt(2 - math.sqrt(2))),  # 45 degrees: cos = 1 / sqrt 2
        ([1, 1], [2, 2, 0], 1.0),  # 45 degrees in both: cos = 1 / 2
    ],
)
def test_second_token(second_key, second_value, expected, backend):
    first, second = scores([[1, 0], second_key], [[2, 0, 0], second_value], backend).tolist()
    assert first == 0.0
    assert second == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_open_segment_is_the_sum_of_its_tokens(backend):
    """Third token against the sum of two orthogonal ones: cos = 1 / sqrt 2, whichever of them it repeats."""
    third = scores([[1, 0], [0, 1], [0, 1]], [[1], [1], [1]], backend)[2].item()
    assert third == pytest.approx(math.sqrt(2 - math.sqrt(2)), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_boundary_starts_the_sum_anew(backend):
    """The second token opens a slot, so the third is compared with it alone."""
    third = scores([[1, 0], [0, 1], [0, 1]], [[1], [1], [1]], backend, threshold=1.0)[2].item()
    assert third == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decay_and_delta_rule_play_no_part(backend):
    """Ten tokens of one direction and one across it: the plain sum is ten times one token, so cos = 1 / sqrt(1 + 1)."""
    eleventh = scores([[1, 0]] * 10 + [[1, 1]], [[1]] * 11, backend)[10].item()
    assert eleventh == pytest.approx(math.sqrt(2 - math.sqrt(2)), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zero", ["key", "value"])
def test_zero_tokens_count_as_orthogonal(zero, backend):
    """There is no direction to compare, neither for a zero token nor for a token after one."""
    keys, values = [[1.0, 0], [1, 0], [1, 0]], [[1.0], [1], [1]]
    (keys if zero == "key" else values)[0] = [0.0, 0.0] if zero == "key" else [0.0]
    assert scores(keys, values, backend).tolist() == pytest.approx([0.0, math.sqrt(2), 0.0], abs=1e-6)
    assert scores(keys[::-1], values[::-1], backend).tolist() == pytest.approx([0.0, 0.0, math.sqrt(2)], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_scale_of_keys_and_values_plays_no_part(draw_inputs, backend, factor):
    inputs = draw_inputs(40, 4).to(torch.float32)
    one = segment(inputs.k, inputs.v, 4, 0.6, backend=backend)
    other = segment(inputs.k * factor, inputs.v / factor, 4, 0.6, backend=backend)
    both = segment(inputs.k * factor, inputs.v * factor, 4, 0.6, backend=backend)
    for plan in (other, both):
        torch.testing.assert_close(plan.score, one.score, rtol=0, atol=2e-5)
        assert torch.equal(plan.shift, one.shift)


@pytest.mark.parametrize("backend", BACKENDS)
def test_score_follows_the_printed_equation(draw_inputs, backend):
    """`||s - S|| / ||S||` after RMSNorm of both, in float64 with the whole matrices, for a segment that never ends."""
    inputs = draw_inputs(30, 4)
    plan = segment(inputs.k, inputs.v, 4, 2.0, backend=backend)
    keys = inputs.k.repeat_interleave(2, 2)
    tokens = keys[..., :, None] * inputs.v[..., None, :]
    before = tokens.cumsum(1) - tokens
    token, total = (x / x.square().mean((-2, -1), keepdim=True).sqrt() for x in (tokens[:, 1:], before[:, 1:]))
    expected = (token - total).flatten(-2).norm(dim=-1) / total.flatten(-2).norm(dim=-1)
    torch.testing.assert_close(plan.score[:, 1:].double(), expected, rtol=0, atol=1e-5)
    assert (plan.score[:, 0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_score_is_float32_whatever_the_inputs(draw_inputs, backend, dtype):
    inputs = draw_inputs(30, 4).to(dtype)
    plan = segment(inputs.k, inputs.v, 4, 0.6, backend=backend)
    same = segment(inputs.k.float(), inputs.v.float(), 4, 0.6, backend=backend)
    assert plan.score.dtype == torch.float32
    assert plan.shift.dtype == torch.int32
    assert torch.equal(plan.score, same.score)
    assert torch.equal(plan.shift, same.shift)
