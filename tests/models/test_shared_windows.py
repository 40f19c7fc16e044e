"""Ranks that share windows compute what one rank does: losses, logits and all gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dla_train.models.context import ALONE, Context, Heads, share_windows, windows_kept_whole
from tests.models import sharing_ranks

RANK = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n" + (
    "from tests.models.sharing_ranks import main; main()"
)


@pytest.mark.parametrize("size", [2, 4])
def test_all_models_are_computed_as_by_one_rank(fork_process: Callable[..., Any], tmp_path: Path, size: int) -> None:
    ranks = [fork_process("-c", RANK, rank, size, tmp_path / "store") for rank in range(size)]
    for process in ranks:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        differences = json.loads(out)
        assert len(differences) == len(sharing_ranks.MODELS) * 3 + (3 if size == 2 else 0)
        # Thresholds have float32 gradients.
        assert all(difference < 1e-6 for difference in differences.values()), differences


def test_a_slice_is_as_long_on_every_rank() -> None:
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(torch.cat([Context(3, rank).slice_of(tokens) for rank in range(3)], 1), tokens)
    assert ALONE.slice_of(tokens) is tokens
    with pytest.raises(ValueError, match=r"12 tokens in a row, which 5 ranks cannot share evenly; .* multiple of 5"):
        Context(5, 0).slice_of(tokens)


def test_each_rank_has_its_heads_of_a_parameter() -> None:
    """Two heads of width 3, one of width 2 that all have, and four of width 1."""
    heads = (Heads(2, 3), Heads(1, 2, serve_many=True), Heads(4, 1))
    parameter = torch.arange(12)
    assert Context(2, 0).own(parameter, heads).tolist() == [0, 1, 2, 6, 7, 8, 9]
    assert Context(2, 1).own(parameter, heads).tolist() == [3, 4, 5, 6, 7, 10, 11]
    assert Context(4, 1).own(parameter, heads).tolist() == [3, 4, 5, 6, 7, 9]
    assert Context(4, 2).own(parameter, heads).tolist() == [0, 0, 0, 6, 7, 10], "a head of zeros"
    assert ALONE.own(parameter, heads) is parameter
    assert Context(2, 1).own(torch.arange(4)).tolist() == [2, 3]


def test_values_of_own_heads_among_those_of_all() -> None:
    values = torch.arange(1.0, 5)
    placed = [Context(2, rank).placed(Context(2, rank).own(values), 4) for rank in range(2)]
    assert placed[0].tolist() == [1, 2, 0, 0]
    uneven = [Context(3, rank).placed(Context(3, rank).own(values), 4) for rank in range(3)]
    assert [x.tolist() for x in uneven] == [[1, 2, 0, 0], [0, 0, 3, 4], [0, 0, 0, 0]]
    assert torch.equal(sum(placed, torch.zeros(4)), values)
    assert ALONE.placed(values, 4) is values


def test_no_cache_of_shared_windows(make_model: Callable[..., Any]) -> None:
    model = make_model("mamba2", "dynamic")
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    _, cache = model(tokens, return_cache=True)
    share_windows(model, Context(2, 0, "a group"))
    for arguments in ({"return_cache": True}, {"cache": cache}):
        with pytest.raises(ValueError, match=r"2 ranks share the windows of this model, .* share_windows"):
            model(tokens, **arguments)
    with windows_kept_whole(model):
        model(tokens, return_cache=True)
    assert model.context.size == model.blocks[0].mixer.memory.slot_weight.context.size == 2
