"""The compiled scan decides as the printed equations do, wherever rounding cannot change a decision."""

import pytest
import torch

TIMES = [1, 63, 64, 65, 500]


@pytest.mark.parametrize("capacity", [1, 2, 15, 30])
@pytest.mark.parametrize("time", TIMES)
def test_scan_equals_reference(draw_inputs, make_plan, thresholds, time, capacity):
    inputs = draw_inputs(time, capacity, batch=2, key_dim=12, value_dim=9, seed=time + capacity)
    plans = {name: make_plan("dynamic", inputs, backend=name) for name in ("reference", "torch")}
    reference, scan = plans["reference"], plans["torch"]
    unsure = (reference.score - thresholds).abs() < 1e-4
    unsure[:, 0] = False  # the first token opens a slot whatever its score
    sure = unsure.long().cumsum(1) == 0  # up to there
    assert sure.float().mean() > 0.8
    assert torch.equal(scan.shift[sure], reference.shift[sure])
    torch.testing.assert_close(scan.score[sure], reference.score[sure], rtol=0, atol=1e-5)
    rows = sure.all(1)  # [B, H]: decided alike to the end
    assert rows.any()
    for name in ("count", "score_sum", "open_sum"):
        ended, expected = getattr(scan.final, name)[rows], getattr(reference.final, name)[rows]
        assert ended.dtype == expected.dtype
        torch.testing.assert_close(ended, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads_per_group", [1, 2, 4])
def test_each_head_sees_the_keys_of_its_group(draw_inputs, make_plan, heads_per_group):
    """Grouped keys give the plan of the same keys repeated for every head."""
    inputs = draw_inputs(100, 5, groups=4 // heads_per_group)
    repeated = inputs.k.repeat_interleave(heads_per_group, 2)
    grouped = make_plan("dynamic", inputs)
    inputs = draw_inputs(100, 5, groups=4).map(torch.clone)
    inputs.k.copy_(repeated)
    inputs.v.copy_(draw_inputs(100, 5, groups=4 // heads_per_group).v)
    assert torch.equal(make_plan("dynamic", inputs).shift, grouped.shift)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_thresholds_of_every_form(draw_inputs, make_plan, backend):
    """A number, a scalar tensor and one number per head are the same threshold."""
    inputs = draw_inputs(60, 5)
    forms = (0.3, torch.tensor(0.3), torch.full((4,), 0.3), torch.full((4,), 0.3, dtype=torch.bfloat16).double())
    plans = [make_plan("dynamic", inputs, threshold=tau, backend=backend) for tau in forms]
    assert torch.equal(plans[0].shift, plans[1].shift)
    assert torch.equal(plans[0].shift, plans[2].shift)
    assert plans[3].score.dtype == torch.float32


def test_memory_layout_plays_no_part(draw_inputs, make_plan):
    inputs = draw_inputs(60, 5, batch=2)
    strided = inputs.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    assert not strided.k.is_contiguous()
    assert torch.equal(make_plan("dynamic", strided).score, make_plan("dynamic", inputs).score)
