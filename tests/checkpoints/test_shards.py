"""Tensors in parts: out of a checkpoint, into files, and back for another number of ranks."""

from itertools import pairwise

import pytest
import torch

from dla_train.checkpoints.manifest import describe_files, sha256
from dla_train.checkpoints.shards import Scattered, Shard, assembled, put_back, read_part, shard_path, take_out
from dla_train.checkpoints.state_file import StateFileIO, read_state, write_shards
from dla_train.errors import RunError

WEIGHT = torch.arange(12.0).view(3, 4)
STATE = {"optimizer_states": [], "global_step": 3, "callbacks": {"one": {"seconds": 2.0}}}


def rank(start, stop):
    """A checkpoint as the rank that holds these elements of the weight sees it."""
    shard = Shard((3, 4), start, WEIGHT.view(-1)[start:stop])
    return {**STATE, "state_dict": {"first": shard, "tied": shard, "buffer": torch.ones(2)}}


@pytest.mark.parametrize("cuts", [[0, 12], [0, 5, 12], [0, 0, 7, 12, 12]], ids=str)
def test_what_any_number_of_ranks_wrote_is_read_whole_or_in_other_parts(tmp_path, cuts):
    path = tmp_path / "state.ckpt"
    for index, (start, stop) in enumerate(pairwise(cuts)):
        write_shards(rank(start, stop), path, index, len(cuts) - 1)

    whole = StateFileIO().load_checkpoint(path)
    assert torch.equal(whole["state_dict"]["first"], WEIGHT)
    assert whole["state_dict"]["tied"] is whole["state_dict"]["first"], "one tensor"
    assert torch.equal(whole["state_dict"]["buffer"], torch.ones(2))
    assert whole["callbacks"] == STATE["callbacks"]

    scattered = read_state(path)["state_dict"]["first"]
    assert isinstance(scattered, Scattered)
    for start in range(12):
        for count in range(12 - start):
            assert read_part(scattered, start, count).tolist() == WEIGHT.view(-1)[start : start + count].tolist()
    assert read_part(WEIGHT, 5, 3).tolist() == [5, 6, 7], "a tensor in one file likewise"


def test_a_file_holds_the_part_alone(tmp_path):
    large = torch.zeros(1_000_000)
    checkpoint = {**STATE, "state_dict": {"w": Shard((1_000_000,), 10, large[10:20])}}
    write_shards(checkpoint, tmp_path / "state.ckpt", 1, 2)
    own = shard_path(tmp_path / "state.ckpt", 1, 2)
    noted = own.with_name(f"{own.name}.sha256")
    assert set(tmp_path.iterdir()) == {own, noted}, "rank 0 alone writes the rest"
    assert own.stat().st_size < 10_000
    content = {"bytes": own.stat().st_size, "sha256": noted.read_text()}
    assert noted.read_text() == sha256(own)
    assert describe_files(tmp_path) == {own.name: content}
    assert not noted.exists()


def test_a_missing_part_is_named_not_filled_with_anything():
    rest, shards = take_out(rank(0, 5))
    back = put_back(rest, [shards])
    assert read_part(back["state_dict"]["first"], 0, 5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="/state_dict/first: elements 0 to 11 are not all in the checkpoint"):
        assembled(back)


def test_shards_are_not_unpickled_either(tmp_path):
    write_shards(rank(0, 12), tmp_path / "state.ckpt", 0, 1)
    torch.save({"/state_dict/first": (0, print)}, shard_path(tmp_path / "state.ckpt", 0, 1))
    with pytest.raises(RunError, match=r"shard-00000-of-00001\.ckpt holds more than tensors and plain values"):
        read_state(tmp_path / "state.ckpt")
